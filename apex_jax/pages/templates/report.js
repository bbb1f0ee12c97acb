"use strict";
// Plays one sound at a time, moves the playhead over the picture beside the player
// that was pressed, and shows the explanations that were chosen.

const audio = document.querySelector(".now audio");
const bar = document.querySelector(".now");
let playing = null; // the button whose sound is loaded

// --- sounds ---------------------------------------------------------------------------

function load(button) {
  if (playing === button) return;
  release();
  playing = button;
  const sound = document.getElementById(button.dataset.sound).textContent;
  audio.src = "data:audio/flac;base64," + sound;
  bar.querySelector("p").textContent = button.getAttribute("aria-label").slice(5);
  bar.hidden = false;
}

function release() {
  audio.pause();
  if (!playing) return;
  playing.setAttribute("aria-pressed", "false");
  playheadOf(playing).setAttribute("visibility", "hidden");
  playing = null;
}

function play() {
  // Fails where another sound was chosen before this one started, or cannot be decoded.
  audio.play().catch((error) => {
    if (error.name !== "AbortError") bar.querySelector("p").textContent = error.message;
  });
}

function plotOf(button) {
  return button.closest("figure").querySelector(".plot");
}

function playheadOf(button) {
  return plotOf(button).querySelector(".playhead");
}

function move() {
  if (!playing) return;
  const { left, right } = plotOf(playing).dataset;
  const second = Number(playing.dataset.start) + audio.currentTime;
  const share = (second - Number(left)) / (Number(right) - Number(left));
  const at = (100 * Math.min(1, Math.max(0, share))).toFixed(2) + "%";
  const line = playheadOf(playing);
  line.setAttribute("x1", at);
  line.setAttribute("x2", at);
  line.setAttribute("visibility", "visible");
}

const still = matchMedia("(prefers-reduced-motion: reduce)");

function follow() {
  move();
  if (!audio.paused && !still.matches) requestAnimationFrame(follow);
}

audio.addEventListener("play", () => {
  if (playing) playing.setAttribute("aria-pressed", "true");
  follow();
});
audio.addEventListener("pause", () => {
  if (playing) playing.setAttribute("aria-pressed", "false");
});
audio.addEventListener("timeupdate", move); // a few times a second, when seeking too
bar.querySelector("input").addEventListener("change", (event) => {
  audio.loop = event.target.checked;
});

for (const button of document.querySelectorAll("button.play")) {
  button.addEventListener("click", () => {
    if (playing === button && !audio.paused) {
      audio.pause();
    } else {
      load(button);
      play();
    }
  });
}

// Pressing on a picture plays its clip from there; with the keyboard, the player's own
// slider does the same.
for (const plot of document.querySelectorAll("figure > .plot, .with-scale > .plot")) {
  const figure = plot.closest("figure");
  const button = figure.querySelector("button.play");
  if (!button) continue;
  plot.classList.add("playable");
  plot.addEventListener("click", (event) => {
    const box = plot.querySelector(".canvas").getBoundingClientRect();
    const share = (event.clientX - box.left) / box.width;
    const { left, right } = plot.dataset;
    const second = Number(left) + share * (Number(right) - Number(left));
    load(button);
    audio.currentTime = Math.max(0, second - Number(button.dataset.start));
    play();
  });
}

// --- what is shown --------------------------------------------------------------------

function chosen(scope, name) {
  const input = scope.querySelector(`input[name^="${name}"]:checked`);
  return input ? input.value : "*";
}

function show() {
  document.body.dataset.heat = chosen(document, "heat");
  const method = chosen(document, "method");
  for (const clip of document.querySelectorAll(".clip")) {
    const target = chosen(clip, "class");
    let shown = 0;
    for (const view of clip.querySelectorAll(".view")) {
      const fits =
        (method === "*" || view.dataset.method === method) &&
        (target === "*" || view.dataset.class === target);
      view.hidden = !fits;
      shown += fits;
    }
    clip.querySelector(".absent").hidden = shown > 0;
    clip.classList.toggle("side-by-side", shown > 1);
  }
  if (playing && playing.closest("[hidden]")) release();
}

for (const choice of document.querySelectorAll(".choice")) {
  choice.hidden = false;
  choice.addEventListener("change", show);
}
show();

// --- links within the page ------------------------------------------------------------

// In a notebook's frame "#clip-3" would be taken as an address in the notebook.
for (const link of document.querySelectorAll('a[href^="#"]')) {
  link.addEventListener("click", (event) => {
    const target = document.getElementById(link.getAttribute("href").slice(1));
    event.preventDefault();
    target.scrollIntoView();
    target.focus({ preventScroll: true });
    if (location.protocol === "file:") history.replaceState(null, "", "#" + target.id);
  });
}

// Paper cannot be unfolded.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});
