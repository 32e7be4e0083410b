"""One self-contained HTML page from one or many run folders: nothing is read but their files, nothing is fetched.

A run may still be going on: whatever is not there yet is named on the page, and the rest is shown.

Reading order: blocks (what a page is made of) -> reading (the files) -> training, transfer, plots, slices, trials, costs (sections) -> content
(all of them, as plain data) -> page (HTML of that data, and nothing else).
"""

from limbeck.report.page import report as report
