"""What people see of runs: a page for the browser, and the same figures for papers.

`sources` finds out what lies in a folder, `curves`, `clients`, `channel`, `emulated` and `studies` say what to draw as plain data
(`charts`), `interactive` and `papers` draw it with plotly and matplotlib, `page` writes the HTML.
"""
