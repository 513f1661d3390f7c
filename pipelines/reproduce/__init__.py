"""Both papers' tables from one command: data sets, evaluations, the page of published and measured figures."""
