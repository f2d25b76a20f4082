"""Imports bank statements as CSV and makes one list of transactions out of them.

Every bank has its own idea of a CSV file: the separator, the encoding, how many lines of preamble,
whether a debit is a negative number or a column of its own. A `Layout` describes one such idea;
`LAYOUTS` holds those we have met. The layout of a file is recognised by its header line.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Iterable, Iterator, Sequence


class StatementError(Exception):
    """A statement that cannot be read. Says the file and, where there is one, the line."""

    def __init__(self, source: str, message: str, line: int | None = None) -> None:
        where = source if line is None else f"{source}, line {line}"
        super().__init__(f"{where}: {message}")


@dataclass(frozen=True)
class Transaction:
    booked: date
    amount: Decimal
    currency: str
    payee: str
    purpose: str
    account: str
    category: str = "other"

    @property
    def fingerprint(self) -> str:
        """The same for the same booking in two overlapping exports."""
        parts = (
            self.account,
            self.booked.isoformat(),
            f"{self.amount:.2f}",
            self.payee.casefold(),
            re.sub(r"\s+", "", self.purpose).casefold(),
        )
        return hashlib.sha256("\x1f".join(parts).encode("utf-8")).hexdigest()[:16]


@dataclass(frozen=True)
class Layout:
    name: str
    booked: str
    payee: str
    purpose: str
    amount: str | None = None
    debit: str | None = None
    credit: str | None = None
    currency: str | None = None
    separator: str = ";"
    encoding: str = "utf-8-sig"
    date_format: str = "%d.%m.%Y"
    decimal_comma: bool = True
    default_currency: str = "EUR"

    def required_columns(self) -> set[str]:
        columns = (self.booked, self.payee, self.purpose, self.amount, self.debit, self.credit)
        return {column for column in columns if column is not None}


LAYOUTS = (
    Layout(
        name="Sparkasse Müllrose",
        booked="Buchungstag",
        payee="Beguenstigter/Zahlungspflichtiger",
        purpose="Verwendungszweck",
        amount="Betrag",
        currency="Waehrung",
        encoding="cp1252",
        date_format="%d.%m.%y",
    ),
    Layout(
        name="Banque de l'Étang",
        booked="Date opération",
        payee="Libellé",
        purpose="Détail",
        debit="Débit",
        credit="Crédit",
        date_format="%d/%m/%Y",
    ),
    Layout(
        name="Harbour & Shire",
        booked="Date",
        payee="Counter Party",
        purpose="Reference",
        amount="Amount (GBP)",
        separator=",",
        date_format="%Y-%m-%d",
        decimal_comma=False,
        default_currency="GBP",
    ),
)


def parse_amount(text: str, *, decimal_comma: bool) -> Decimal:
    """`1.234,56 €`, `-12.50`, `(3.20)` or `45,00-` as a decimal number."""
    cleaned = re.sub(r"[^\d,.()+-]", "", text)
    negative = cleaned.startswith(("-", "(")) or cleaned.endswith("-")
    digits = cleaned.strip("()+-")
    thousands, point = (".", ",") if decimal_comma else (",", ".")
    digits = digits.replace(thousands, "").replace(point, ".")
    try:
        value = Decimal(digits)
    except InvalidOperation:
        raise ValueError(f"{text!r} is no amount") from None
    return -value if negative else value


def recognise(data: bytes, layouts: Sequence[Layout] = LAYOUTS) -> tuple[Layout, int] | None:
    """The layout of a file and the number of lines before its header."""
    for layout in layouts:
        try:
            text = data.decode(layout.encoding)
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines()[:20]):
            cells = {cell.strip().strip('"') for cell in line.split(layout.separator)}
            if layout.required_columns() <= cells:
                return layout, number
    return None


def read_statement(path: Path, account: str) -> list[Transaction]:
    data = path.read_bytes()
    recognised = recognise(data)
    if recognised is None:
        names = ", ".join(layout.name for layout in LAYOUTS)
        raise StatementError(path.name, f"no known layout (known are: {names})")
    layout, preamble = recognised
    lines = data.decode(layout.encoding).splitlines(keepends=True)[preamble:]
    return list(_transactions(lines, layout, account, path.name, preamble))


def _transactions(
    lines: list[str], layout: Layout, account: str, source: str, preamble: int
) -> Iterator[Transaction]:
    reader = csv.DictReader(io.StringIO("".join(lines)), delimiter=layout.separator)
    for row in reader:
        line = preamble + reader.line_num
        if not (row[layout.booked] or "").strip():
            continue  # totals and empty lines at the end
        try:
            yield _transaction(row, layout, account)
        except ValueError as error:
            raise StatementError(source, str(error), line) from error


def _transaction(row: dict[str, str], layout: Layout, account: str) -> Transaction:
    currency = row.get(layout.currency or "", "").strip() or layout.default_currency
    return Transaction(
        booked=datetime.strptime(row[layout.booked].strip(), layout.date_format).date(),
        amount=_amount(row, layout),
        currency=currency,
        payee=" ".join((row[layout.payee] or "").split()),
        purpose=" ".join((row[layout.purpose] or "").split()),
        account=account,
    )


def _amount(row: dict[str, str], layout: Layout) -> Decimal:
    if layout.amount is not None:
        return parse_amount(row[layout.amount], decimal_comma=layout.decimal_comma)
    debit = (row[layout.debit] or "").strip()
    credit = (row[layout.credit] or "").strip()
    if bool(debit) == bool(credit):
        raise ValueError("exactly one of debit and credit must be filled in")
    value = parse_amount(debit or credit, decimal_comma=layout.decimal_comma)
    return -abs(value) if debit else abs(value)


def without_duplicates(transactions: Iterable[Transaction]) -> list[Transaction]:
    seen: set[str] = set()
    unique = []
    for transaction in transactions:
        if transaction.fingerprint not in seen:
            seen.add(transaction.fingerprint)
            unique.append(transaction)
    return sorted(unique, key=lambda t: (t.booked, t.account, t.amount))


@dataclass(frozen=True)
class Rule:
    category: str
    pattern: re.Pattern[str]

    @classmethod
    def of(cls, category: str, *words: str) -> Rule:
        return cls(category, re.compile("|".join(map(re.escape, words)), re.IGNORECASE))


RULES = (
    Rule.of("groceries", "Edeka", "Bäckerei", "Boulangerie", "Tesco", "Marché"),
    Rule.of("rent", "Miete", "loyer", "landlord"),
    Rule.of("travel", "Deutsche Bahn", "SNCF", "Zürich HB", "railcard"),
    Rule.of("salary", "Gehalt", "salaire", "payroll"),
)


def categorise(transaction: Transaction, rules: Sequence[Rule] = RULES) -> Transaction:
    haystack = f"{transaction.payee} {transaction.purpose}"
    for rule in rules:
        if rule.pattern.search(haystack):
            return replace(transaction, category=rule.category)
    return transaction


def monthly_totals(transactions: Iterable[Transaction]) -> dict[tuple[str, str, str], Decimal]:
    """Sums by month (`2024-03`), category and currency."""
    totals: dict[tuple[str, str, str], Decimal] = defaultdict(Decimal)
    for t in transactions:
        totals[f"{t.booked:%Y-%m}", t.category, t.currency] += t.amount
    return dict(sorted(totals.items()))
