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

const ask = window.fetch.bind(window);
window.fetch = async (what, options) => {
  const answer = await ask(what, options);
  const method = options?.method ?? what.method ?? "GET";
  const { pathname } = new URL(answer.url);
  // What is asked about studies as such; the page shows the reason of all other refusals.
  if (method !== "GET" && /^\/api\/studies(\/\d+(\/rename)?)?$/.test(pathname)) {
    if (!answer.ok) {
      show((await answer.clone().json()).reason);
    } else if (pathname.endsWith("/rename")) {
      location.reload(); // instead of the page's own message, which says that a study was deleted
    }
  }
  return answer;
};
