"""Published weights come in, Classifiers go out: hosts, downloads, the hub, model cards."""
