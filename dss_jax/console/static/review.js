// Keys of the review: Ctrl+Enter saves a row and goes on to the next one.
"use strict";

let onward = null;

document.addEventListener("keydown", event => {
  const form = event.target.closest?.("form[data-row]");
  if (!form || event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  onward = form.dataset.row;
  form.requestSubmit();
});

document.addEventListener("htmx:afterSettle", event => {
  const row = event.target.closest?.("article.review");
  if (!row) return;
  const error = row.querySelector(".error");
  say(error ? error.textContent : `${row.querySelector("h2").textContent} is saved.`);
  if (onward === null) return;
  const rows = [...document.querySelectorAll("article.review")];
  const next = error ? row : rows[rows.findIndex(each => each.id === row.id) + 1];
  next?.querySelector("textarea[name=rationale]")?.focus();
  onward = null;
});

for (const kind of ["htmx:responseError", "htmx:sendError"]) {
  document.addEventListener(kind, () => {
    onward = null;
    const said = say("This was not saved: the server did not take it. Load the page again.");
    said.classList.remove("hidden");
    said.classList.add("notice", "bad");
    said.scrollIntoView({block: "center"});
  });
}

function say(text) {
  const said = document.getElementById("said");
  said.textContent = text;
  return said;
}
