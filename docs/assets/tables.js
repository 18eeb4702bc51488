// Tables that scroll by themselves are to be reached by the keyboard, too.
document$.subscribe(() => setTimeout(() => {
  for (const each of document.querySelectorAll(".md-typeset__scrollwrap"))
    if (each.scrollWidth > each.clientWidth) each.tabIndex = 0
}))
