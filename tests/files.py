"""Small real files of every kind that can be uploaded, and some that do harm."""

import io
import zipfile
import zlib
from typing import Final

import docx
import pypdf

PAGE: Final = b"""<!doctype html><html><head><title>Green tea</title></head><body>
<script>track()</script><h1>Sencha</h1><p>Sencha is brewed at 80 degrees.</p></body></html>"""
# The beginning of a picture.
PNG: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\6\0\0\0\x1f\x15\xc4\x89"


def pdf(content: bytes = b"(Sencha is brewed at 80 degrees.) Tj", pages: int = 1) -> bytes:
    """Return a PDF of pages that are all drawn so, with the title `Green tea`."""
    drawn = zlib.compress(b"BT /F1 12 Tf 72 720 Td " + content + b" ET")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (b"3 0 R " * pages, pages),
        b"<< /Type /Page /Parent 2 0 R /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream" % (len(drawn), drawn),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Title (Green tea) >>",
    ]
    out, places = bytearray(b"%PDF-1.4\n"), []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    out += b"trailer\n<< /Size %d /Root 1 0 R /Info 6 0 R >>\n" % (len(objects) + 1)
    return bytes(out + b"startxref\n%d\n%%%%EOF\n" % start)


def slow_pdf() -> bytes:
    """Return a PDF of some KB without a word, which takes a processor a minute to read."""
    return pdf(b"1 0 0 1 0 0 cm\n" * 200, pages=20_000)


def locked_pdf() -> bytes:
    """Return a PDF that opens with a password."""
    writer = pypdf.PdfWriter(io.BytesIO(pdf()))
    writer.encrypt("secret", algorithm="AES-256")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def word() -> bytes:
    """Return a DOCX with a heading, a paragraph and a table, with the title `Green tea`."""
    document = docx.Document()
    document.core_properties.title = "Green tea"
    document.add_heading("Sencha", 2)
    document.add_paragraph("Sencha is brewed at 80 degrees.")
    table = document.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Bancha", "90"
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def bomb() -> bytes:
    """Return a DOCX of a few hundred KB that holds 200 MB."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(word())) as whole,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as swollen,
    ):
        for name in whole.namelist():
            with swollen.open(name, "w") as part:
                part.write(whole.read(name))
                if name == "docProps/thumbnail.jpeg":  # which is read whole, and nothing more
                    for _ in range(200):
                        part.write(b" " * (1 << 20))
    return out.getvalue()
