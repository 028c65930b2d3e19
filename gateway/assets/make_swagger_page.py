"""Makes swagger.html.gz: Swagger UI in one page that needs no network.

npm pack swagger-ui-dist@5.35.0 && tar xzf swagger-ui-dist-5.35.0.tgz
python3 gateway/assets/make_swagger_page.py package
"""

import gzip
import pathlib
import sys

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="UTF-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Mosec API</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<div id="swagger-ui"></div>
<script>{script}</script>
<script>
window.ui = SwaggerUIBundle({{url: "../metadata.json", dom_id: "#swagger-ui", deepLinking: true}});
</script>
</body>
</html>
"""


def main(package: pathlib.Path) -> None:
    here = pathlib.Path(__file__).parent
    # Inside a page, these two end or change a script wherever they stand.
    script = (package / "swagger-ui-bundle.js").read_text().replace("</script", "<\\/script").replace("<!--", "<\\!--")
    page = PAGE.format(style=(package / "swagger-ui.css").read_text(), script=script)
    # No time and no name, so that the same input gives the same bytes.
    (here / "swagger.html.gz").write_bytes(gzip.compress(page.encode(), 9, mtime=0))
    notice = (package / "NOTICE").read_text().strip()
    licences = (package / "swagger-ui-bundle.js.LICENSE.txt").read_text().strip()
    (here / "swagger.NOTICE").write_text(
        "swagger.html.gz holds swagger-ui.css and swagger-ui-bundle.js of swagger-ui-dist 5.35.0, licensed under\n"
        "Apache-2.0 (see LICENSE at the root of this repository).\n\n"
        f"{notice}\n\nIts bundle holds:\n\n{licences}\n"
    )


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
