"use strict";
{
  const gallery = document.getElementById("gallery");

  // A button's data-shows is the class of what it shows and hides.
  function show(button, shown) {
    button.setAttribute("aria-pressed", shown);
    for (const element of gallery.getElementsByClassName(button.dataset.shows)) {
      element.classList.toggle("off", !shown);
    }
  }

  for (const button of document.querySelectorAll("button[data-shows]")) {
    button.addEventListener("click", () => show(button, button.getAttribute("aria-pressed") === "false"));
  }

  function showAll(shown) {
    for (const button of document.querySelectorAll("#part-buttons button")) show(button, shown);
  }

  document.getElementById("all-parts").addEventListener("click", () => showAll(true));
  document.getElementById("no-parts").addEventListener("click", () => showAll(false));

  const opacity = document.getElementById("opacity");
  opacity.addEventListener("input", () => {
    gallery.style.setProperty("--opacity", opacity.value / 100);
    document.getElementById("opacity-value").value = `${opacity.value} %`;
  });

  const byIndex = (a, b) => a.dataset.index - b.dataset.index;
  // Images without an error come last.
  const byError = (sign) => (a, b) =>
    (a.dataset.error === "") - (b.dataset.error === "") ||
    sign * (a.dataset.error - b.dataset.error) ||
    byIndex(a, b);
  const orders = { worst: byError(-1), best: byError(1), index: byIndex };
  const order = document.getElementById("order");
  order.addEventListener("change", () => gallery.append(...[...gallery.children].sort(orders[order.value])));
}
