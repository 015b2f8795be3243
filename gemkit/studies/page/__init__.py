"""What every HTML report is made of: a page in one file, plots that fit any width, numbers that line up.

How a report is written with it:

1. A template in `templates/` extends `page.html.j2` and fills its blocks; `macros.html.j2` has the pieces that
   repeat. Everything that is put into it is escaped, unless it is `Markup`.
2. Plots are made in Python: an `axes.linear` or `axes.logarithmic` for each direction, a `plot.Plot` over the two,
   bands, lines and points onto it, and its `markup()` into the template.
3. `render.render(template, **context)` is the page.

    x = logarithmic([p.flops for p in ladder])
    y = linear([p.ne for p in ladder])
    plot = Plot(x, y, x_title="FLOPs per example", y_title="NE", y_hint="↓ better", description="...")
    plot.band([(f, fit.low(f), fit.high(f)) for f in grid], color=series_color(0))
    plot.line([(f, fit(f)) for f in grid], color=series_color(0))
    for p in ladder:
        plot.point(p.flops, p.ne, color=series_color(0), names=(p.name,), title=f"{p.name}: NE {p.ne:.4f}")
    plot.span(slow, fast, ne, "3.1x fewer FLOPs")
    html = render("scale.html.j2", plot=plot.markup(), legend=legend([("wukong", series_color(0), series_dash(0))]))
"""
