"""A run as one HTML page: scores, inputs, parameters, task vectors, the search, and its charts.

`contents` says what there is to tell, `page` lays it out. What a run needs (`paths`) stays cheap to
import, so nothing is imported here.
"""
