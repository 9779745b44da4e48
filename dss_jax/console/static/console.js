// What pages do beyond plain HTML; every page works without it.
"use strict";

// A file that the server would refuse is not sent at all.
document.addEventListener("change", event => {
  const field = event.target;
  if (field.type !== "file" || !field.dataset.maxBytes) return;
  const isTooLarge = field.files.length && field.files[0].size > Number(field.dataset.maxBytes);
  field.setCustomValidity(isTooLarge ? "This file is larger than the server takes." : "");
  if (isTooLarge) field.reportValidity();
});
