-- Loans of a lending library: schema, the rules that must always hold, and the reports.
-- SQLite 3.35 or later. Dates are ISO text, money is in cents.

PRAGMA foreign_keys = ON;

CREATE TABLE member (
    member_id   INTEGER PRIMARY KEY,
    name        TEXT NOT NULL CHECK (length(trim(name)) > 0),
    email       TEXT NOT NULL UNIQUE COLLATE NOCASE,
    joined_on   TEXT NOT NULL DEFAULT (date('now')),
    blocked     INTEGER NOT NULL DEFAULT 0 CHECK (blocked IN (0, 1))
);

CREATE TABLE title (
    title_id    INTEGER PRIMARY KEY,
    name        TEXT NOT NULL,
    author      TEXT NOT NULL,
    shelf       TEXT NOT NULL,
    loan_days   INTEGER NOT NULL DEFAULT 28 CHECK (loan_days BETWEEN 1 AND 90)
);

CREATE TABLE copy (
    copy_id     INTEGER PRIMARY KEY,
    title_id    INTEGER NOT NULL REFERENCES title (title_id),
    bought_on   TEXT NOT NULL,
    price_cents INTEGER NOT NULL CHECK (price_cents >= 0),
    withdrawn   INTEGER NOT NULL DEFAULT 0 CHECK (withdrawn IN (0, 1))
);

CREATE TABLE loan (
    loan_id     INTEGER PRIMARY KEY,
    copy_id     INTEGER NOT NULL REFERENCES copy (copy_id),
    member_id   INTEGER NOT NULL REFERENCES member (member_id),
    lent_on     TEXT NOT NULL,
    due_on      TEXT NOT NULL,
    returned_on TEXT,
    CHECK (due_on >= lent_on),
    CHECK (returned_on IS NULL OR returned_on >= lent_on)
);

-- A copy can be with one member only.
CREATE UNIQUE INDEX loan_open_copy ON loan (copy_id) WHERE returned_on IS NULL;
CREATE INDEX loan_member ON loan (member_id, lent_on);

CREATE TABLE reservation (
    reservation_id INTEGER PRIMARY KEY,
    title_id       INTEGER NOT NULL REFERENCES title (title_id),
    member_id      INTEGER NOT NULL REFERENCES member (member_id),
    made_at        TEXT NOT NULL,
    fulfilled_by   INTEGER REFERENCES loan (loan_id),
    UNIQUE (title_id, member_id, made_at)
);

CREATE TRIGGER loan_is_allowed
BEFORE INSERT ON loan
BEGIN
    SELECT RAISE(ABORT, 'the member is blocked')
    WHERE EXISTS (SELECT 1 FROM member WHERE member_id = NEW.member_id AND blocked = 1);

    SELECT RAISE(ABORT, 'the copy has been withdrawn')
    WHERE EXISTS (SELECT 1 FROM copy WHERE copy_id = NEW.copy_id AND withdrawn = 1);

    SELECT RAISE(ABORT, 'the member has ten books already')
    WHERE (
        SELECT count(*) FROM loan
        WHERE member_id = NEW.member_id AND returned_on IS NULL
    ) >= 10;
END;

-- The oldest open reservation of the member for this title is the one that the loan fulfils.
CREATE TRIGGER loan_fulfils_reservation
AFTER INSERT ON loan
BEGIN
    UPDATE reservation
    SET fulfilled_by = NEW.loan_id
    WHERE reservation_id = (
        SELECT r.reservation_id
        FROM reservation AS r
        JOIN copy AS c ON c.title_id = r.title_id
        WHERE c.copy_id = NEW.copy_id
          AND r.member_id = NEW.member_id
          AND r.fulfilled_by IS NULL
        ORDER BY r.made_at
        LIMIT 1
    );
END;

CREATE VIEW title_availability AS
SELECT
    t.title_id,
    t.name,
    count(c.copy_id) AS copies,
    count(c.copy_id) - count(l.loan_id) AS on_shelf,
    (
        SELECT count(*) FROM reservation AS r
        WHERE r.title_id = t.title_id AND r.fulfilled_by IS NULL
    ) AS waiting,
    min(l.due_on) AS next_due
FROM title AS t
LEFT JOIN copy AS c ON c.title_id = t.title_id AND c.withdrawn = 0
LEFT JOIN loan AS l ON l.copy_id = c.copy_id AND l.returned_on IS NULL
GROUP BY t.title_id, t.name;

-- 20 cents a day after three days of grace, never more than the copy cost.
CREATE VIEW fine AS
SELECT
    l.loan_id,
    l.member_id,
    c.copy_id,
    min(
        c.price_cents,
        20 * max(0, CAST(julianday(coalesce(l.returned_on, date('now'))) - julianday(l.due_on) AS INTEGER) - 3)
    ) AS cents
FROM loan AS l
JOIN copy AS c USING (copy_id)
WHERE coalesce(l.returned_on, date('now')) > date(l.due_on, '+3 days');

-- Report: what members owe, with their oldest overdue loan.
SELECT
    m.name,
    m.email,
    count(*) AS loans,
    printf('%.2f', sum(f.cents) / 100.0) AS owed,
    min(l.due_on) AS oldest
FROM fine AS f
JOIN member AS m USING (member_id)
JOIN loan AS l USING (loan_id)
GROUP BY m.member_id
HAVING sum(f.cents) >= 100
ORDER BY sum(f.cents) DESC, m.name;

-- Report: the three titles of every shelf that were lent most in the last twelve months.
WITH lent AS (
    SELECT t.shelf, t.name, count(*) AS loans
    FROM loan AS l
    JOIN copy AS c USING (copy_id)
    JOIN title AS t USING (title_id)
    WHERE l.lent_on >= date('now', '-12 months')
    GROUP BY t.title_id
),
ranked AS (
    SELECT
        shelf,
        name,
        loans,
        dense_rank() OVER (PARTITION BY shelf ORDER BY loans DESC) AS place
    FROM lent
)
SELECT shelf, place, name, loans
FROM ranked
WHERE place <= 3
ORDER BY shelf, place, name;

-- Report: loans by month with the change from the month before, months without a loan included.
WITH RECURSIVE month (start) AS (
    SELECT date('now', 'start of month', '-11 months')
    UNION ALL
    SELECT date(start, '+1 month') FROM month WHERE start < date('now', 'start of month')
),
counted AS (
    SELECT month.start, count(loan.loan_id) AS loans
    FROM month
    LEFT JOIN loan
        ON loan.lent_on >= month.start
       AND loan.lent_on < date(month.start, '+1 month')
    GROUP BY month.start
)
SELECT
    strftime('%Y-%m', start) AS month,
    loans,
    loans - lag(loans) OVER (ORDER BY start) AS change
FROM counted
ORDER BY start;

-- Report: copies that nobody has borrowed for two years, for the book sale.
SELECT t.shelf, t.name, c.copy_id, max(l.returned_on) AS last_back
FROM copy AS c
JOIN title AS t USING (title_id)
LEFT JOIN loan AS l USING (copy_id)
WHERE c.withdrawn = 0
  AND c.bought_on < date('now', '-2 years')
GROUP BY c.copy_id
HAVING coalesce(max(l.lent_on), '') < date('now', '-2 years')
   AND sum(l.loan_id IS NOT NULL AND l.returned_on IS NULL) = 0
ORDER BY t.shelf, t.name;
