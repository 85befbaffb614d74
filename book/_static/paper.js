/* On paper a page is light, whatever it is on the screen. */
(function () {
  "use strict";
  const page = document.documentElement.dataset;
  let screen;
  addEventListener("beforeprint", () => { screen = page.theme; page.theme = "light"; });
  addEventListener("afterprint", () => { page.theme = screen; });
})();
