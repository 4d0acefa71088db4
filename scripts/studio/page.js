// Videos of one row play in step: the first leads, the others follow its clock. A click pauses the whole row.
setInterval(() => {
  for (const row of document.querySelectorAll(".in-step")) {
    const [leader, ...others] = row.querySelectorAll("video");
    if (!leader || leader.readyState < 2) continue;
    for (const video of others) {
      if (video.readyState < 2) continue;
      const target = Math.min(leader.currentTime, Math.max(0, video.duration - 0.01));
      if (Math.abs(video.currentTime - target) > 0.06) video.currentTime = target;
      if (video.paused !== leader.paused) leader.paused ? video.pause() : video.play().catch(() => {});
    }
  }
}, 100);
document.addEventListener("click", (event) => {
  const row = event.target.matches?.("video") && event.target.closest(".in-step, .gallery");
  if (!row) return;
  const leader = row.matches(".gallery") ? event.target : row.querySelector("video");
  leader.paused ? leader.play() : leader.pause();
});
