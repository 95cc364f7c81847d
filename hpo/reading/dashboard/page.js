// Shows why something was refused: optuna-dashboard's page says only that it failed.
"use strict";

function show(why) {
  document.getElementById("hpo-refused")?.remove();
  const line = document.createElement("button");
  line.id = "hpo-refused";
  line.setAttribute("role", "alert");
  line.title = "Close";
  line.textContent = why;
  line.onclick = () => line.remove();
  document.body.append(line);
}

function answered(method, path) {
  return function () {
    if (this.status >= 400) {
      show(typeof this.response === "string" ? JSON.parse(this.response).reason : this.response.reason);
    } else if (path.endsWith("/rename")) {
      location.reload(); // instead of the page's own message, which says that a study was deleted
    }
  };
}

const open = XMLHttpRequest.prototype.open;
XMLHttpRequest.prototype.open = function (method, url, ...others) {
  const path = new URL(url, location.href).pathname;
  // What is asked about studies as such; the page shows the reason of all other refusals.
  if (method !== "GET" && /^\/api\/studies(\/\d+(\/rename)?)?$/.test(path)) {
    this.addEventListener("load", answered(method, path));
  }
  return open.call(this, method, url, ...others);
};
