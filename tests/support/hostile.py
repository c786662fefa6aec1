"""Text that tries to act as markup, script or control characters."""

HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</script><script>window.hacked = 2</script>",
    '"><img src=x onerror="window.hacked = 3">',
    "' onmouseover='window.hacked = 4",
    "{{ 7 * 7 }} {% for x in [] %} ${7 * 7} <%= 7 %>",
    "<!-- <svg onload=window.hacked=5> --> ]]> <style>*{display:none}</style>",
    "control \x00\x07\x1b[31m\x7f\x85 characters",
    "right-to-left \u202eoverride\u202c and isolate \u2067too\u2069",
    "javascript:window.hacked=6 <a href='javascript:window.hacked=7'>x</a> &lt;b&gt; &amp;",
    "x" * 100_000,
]
