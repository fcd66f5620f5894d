"""Ten exercises about VGG with a program that checks them: `python -m vggkit.models.lessons.exercises`."""
