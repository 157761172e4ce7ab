// Equations are in what arithmatex marks, and in a notebook's text.
window.MathJax = {
  tex: {
    inlineMath: [["\\(", "\\)"], ["$", "$"]],
    displayMath: [["\\[", "\\]"], ["$$", "$$"]],
  },
  options: {
    enableMenu: false, // Its entries would fetch more files.
    ignoreHtmlClass: ".*",
    processHtmlClass: "arithmatex|jp-RenderedMarkdown",
  },
};
