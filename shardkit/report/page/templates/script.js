"use strict";
(function () {
  var root = document.documentElement, said = document.getElementById("said");
  function stored(value) {
    try {
      if (value === undefined) return localStorage.getItem("shardkit-theme");
      localStorage.setItem("shardkit-theme", value);
    } catch (err) { return null; }
  }
  var theme = document.getElementById("theme"), names = ["auto", "light", "dark"];
  function setTheme(name) {
    if (name === "auto") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", name);
    theme.textContent = "Theme: " + name;
  }
  var current = names.indexOf(stored()) < 0 ? "auto" : stored();
  setTheme(current);
  theme.addEventListener("click", function () {
    current = names[(names.indexOf(current) + 1) % 3];
    stored(current);
    setTheme(current);
  });
  function say(text) { said.textContent = ""; said.textContent = text; }
  function byHand(text) {
    var area = document.createElement("textarea");
    area.value = text;
    document.body.appendChild(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  document.querySelectorAll(".copy").forEach(function (button) {
    button.addEventListener("click", function () {
      var text = button.parentNode.querySelector("code").textContent;
      var done = function () {
        button.textContent = "Copied";
        say("Copied");
        setTimeout(function () { button.textContent = "Copy"; }, 1500);
      };
      if (navigator.clipboard) navigator.clipboard.writeText(text).then(done, function () { byHand(text); done(); });
      else { byHand(text); done(); }
    });
  });
  var form = document.getElementById("filters");
  if (!form) return;
  var cards = Array.from(document.querySelectorAll("#cards .card"));
  var texts = cards.map(function (card) { return card.textContent.toLowerCase(); });
  var sources = cards.map(function (card) { return JSON.parse(card.dataset.sources); });
  var shown = document.getElementById("shown");
  function apply() {
    var f = form.elements, words = f.search.value.toLowerCase(), n = 0;
    var low = f.low.value === "" ? 0 : +f.low.value;
    var high = f.high.value === "" ? Infinity : +f.high.value;
    cards.forEach(function (card, i) {
      var d = card.dataset;
      var fits = (!words || texts[i].indexOf(words) >= 0)
        && (!f.source.value || sources[i].indexOf(f.source.value) >= 0)
        && +d.length >= low && +d.length <= high
        && (!f.cut.checked || +d.cut > 0)
        && (!f.pictures.checked || +d.pictures > 0)
        && (!f.unanswered.checked || +d.supervised === 0);
      card.hidden = !fits;
      n += fits ? 1 : 0;
    });
    shown.textContent = n + " of " + cards.length + " shown";
  }
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("submit", function (event) { event.preventDefault(); });
  form.addEventListener("reset", function () { setTimeout(apply, 0); });
  apply();
})();
