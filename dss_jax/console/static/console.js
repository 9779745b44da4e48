// What pages do beyond plain HTML; every page works without it.
"use strict";

// Lists are asked again while somebody looks at them.
const REFRESH_MILLISECONDS = 5000;
setInterval(() => {
  if (document.hidden) return;
  for (const part of document.querySelectorAll("[data-refresh]")) htmx.trigger(part, "refresh");
}, REFRESH_MILLISECONDS);

// A file that the server would refuse is not sent at all.
document.addEventListener("change", event => {
  const field = event.target;
  if (field.type !== "file" || !field.dataset.maxBytes) return;
  const isTooLarge = field.files.length && field.files[0].size > Number(field.dataset.maxBytes);
  field.setCustomValidity(isTooLarge ? "This file is larger than the server takes." : "");
  if (isTooLarge) field.reportValidity();
});
