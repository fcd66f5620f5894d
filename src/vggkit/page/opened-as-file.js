// Not a module, so that it runs where modules do not: in a page that was opened from a folder.
if (location.protocol === "file:") {
  const alert = document.getElementById("alert");
  document.getElementById("about").textContent = "";
  alert.hidden = false;
  alert.textContent =
    "Browsers do not let a page that was opened from a file load its model. Start a server in this folder, " +
    "such as python -m http.server, and open the address that it prints.";
}
