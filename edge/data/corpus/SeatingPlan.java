package org.example.theatre;

import java.util.ArrayList;
import java.util.Collections;
import java.util.Comparator;
import java.util.EnumMap;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.OptionalInt;
import java.util.stream.Collectors;
import java.util.stream.IntStream;

/**
 * The seats of one performance: which are free, held or sold, and which are the best ones left.
 *
 * <p>A hold expires by itself. Nothing here asks for the time; callers pass it in as seconds, so
 * that a plan can be replayed from a journal of bookings.
 *
 * <p>Instances are not safe for use by several threads; the box office keeps one thread per plan.
 */
public final class SeatingPlan {

    /** Price bands, dearest first. */
    public enum Band {
        STALLS,
        CIRCLE,
        BALCONY
    }

    /** A seat by its row and number, both counted from zero. */
    public record Seat(int row, int number) implements Comparable<Seat> {
        private static final Comparator<Seat> ORDER =
                Comparator.comparingInt(Seat::row).thenComparingInt(Seat::number);

        @Override
        public int compareTo(Seat other) {
            return ORDER.compare(this, other);
        }

        /** As printed on a ticket: rows are letters, seats are counted from one. */
        public String label() {
            return (char) ('A' + row) + Integer.toString(number + 1);
        }
    }

    /** What came of an attempt to hold or to buy seats. */
    public sealed interface Outcome {
        record Accepted(List<Seat> seats) implements Outcome {}

        record Refused(String reason) implements Outcome {}
    }

    private record Row(Band band, int seats) {}

    private record Hold(String customer, long expiresAt) {}

    private final List<Row> rows;
    private final Map<Seat, Hold> holds = new HashMap<>();
    private final Map<Seat, String> sold = new HashMap<>();
    private final long holdSeconds;

    private SeatingPlan(Builder builder) {
        this.rows = List.copyOf(builder.rows);
        this.holdSeconds = builder.holdSeconds;
    }

    public static Builder builder() {
        return new Builder();
    }

    public static final class Builder {
        private final List<Row> rows = new ArrayList<>();
        private long holdSeconds = 600;

        private Builder() {}

        public Builder rows(Band band, int count, int seatsPerRow) {
            if (count < 1 || seatsPerRow < 1) {
                throw new IllegalArgumentException("a band needs at least one row and one seat");
            }
            Row row = new Row(Objects.requireNonNull(band), seatsPerRow);
            rows.addAll(Collections.nCopies(count, row));
            return this;
        }

        public Builder holdSeconds(long seconds) {
            this.holdSeconds = seconds;
            return this;
        }

        public SeatingPlan build() {
            if (rows.isEmpty() || rows.size() > 26) {
                throw new IllegalStateException("a plan has 1 to 26 rows, not " + rows.size());
            }
            return new SeatingPlan(this);
        }
    }

    public boolean isFree(Seat seat, long now) {
        requireExists(seat);
        if (sold.containsKey(seat)) {
            return false;
        }
        Hold hold = holds.get(seat);
        return hold == null || hold.expiresAt() <= now;
    }

    /** Holds all of the seats for a customer, or none of them. */
    public Outcome hold(String customer, List<Seat> seats, long now) {
        for (Seat seat : seats) {
            boolean mine = holderOf(seat, now).filter(customer::equals).isPresent();
            if (!mine && !isFree(seat, now)) {
                return new Outcome.Refused(seat.label() + " is taken");
            }
        }
        Hold hold = new Hold(customer, now + holdSeconds);
        seats.forEach(seat -> holds.put(seat, hold));
        return new Outcome.Accepted(List.copyOf(seats));
    }

    /** Sells everything that the customer holds. */
    public Outcome buy(String customer, long now) {
        List<Seat> held = heldBy(customer, now);
        if (held.isEmpty()) {
            return new Outcome.Refused("no seats are held for " + customer);
        }
        for (Seat seat : held) {
            holds.remove(seat);
            sold.put(seat, customer);
        }
        return new Outcome.Accepted(held);
    }

    public void release(String customer) {
        holds.values().removeIf(hold -> hold.customer().equals(customer));
    }

    /**
     * Finds the best adjacent seats for a party in a band.
     *
     * <p>Nearer the stage is better, then nearer the middle. Places that would leave a single free
     * seat between two parties are only offered when nothing else is left.
     */
    public Optional<List<Seat>> bestSeats(Band band, int party, long now) {
        Optional<List<Seat>> fallback = Optional.empty();
        for (int r = 0; r < rows.size(); r++) {
            if (rows.get(r).band() != band) {
                continue;
            }
            boolean[] free = freeInRow(r, now);
            OptionalInt tidy = nearestToMiddle(free, party, true);
            if (tidy.isPresent()) {
                return Optional.of(block(r, tidy.getAsInt(), party));
            }
            OptionalInt any = nearestToMiddle(free, party, false);
            if (fallback.isEmpty() && any.isPresent()) {
                fallback = Optional.of(block(r, any.getAsInt(), party));
            }
        }
        return fallback;
    }

    private static OptionalInt nearestToMiddle(boolean[] free, int party, boolean tidy) {
        int best = -1;
        int bestDistance = Integer.MAX_VALUE;
        for (int start = 0; start + party <= free.length; start++) {
            if (!allFree(free, start, party) || tidy && leavesSingle(free, start, party)) {
                continue;
            }
            int distance = Math.abs(2 * start + party - free.length);
            if (distance < bestDistance) {
                bestDistance = distance;
                best = start;
            }
        }
        return best < 0 ? OptionalInt.empty() : OptionalInt.of(best);
    }

    private static boolean allFree(boolean[] free, int start, int party) {
        return IntStream.range(start, start + party).allMatch(i -> free[i]);
    }

    private static boolean leavesSingle(boolean[] free, int start, int party) {
        int left = 0;
        for (int i = start - 1; i >= 0 && free[i]; i--) {
            left++;
        }
        int right = 0;
        for (int i = start + party; i < free.length && free[i]; i++) {
            right++;
        }
        return left == 1 || right == 1;
    }

    private static List<Seat> block(int row, int start, int party) {
        return IntStream.range(start, start + party).mapToObj(n -> new Seat(row, n)).toList();
    }

    private boolean[] freeInRow(int row, long now) {
        boolean[] free = new boolean[rows.get(row).seats()];
        for (int n = 0; n < free.length; n++) {
            free[n] = isFree(new Seat(row, n), now);
        }
        return free;
    }

    private Optional<String> holderOf(Seat seat, long now) {
        return Optional.ofNullable(holds.get(seat))
                .filter(hold -> hold.expiresAt() > now)
                .map(Hold::customer);
    }

    private List<Seat> heldBy(String customer, long now) {
        return holds.keySet().stream()
                .filter(seat -> holderOf(seat, now).filter(customer::equals).isPresent())
                .sorted()
                .toList();
    }

    /** Free seats by band; bands that are sold out are there with a zero. */
    public Map<Band, Long> freeByBand(long now) {
        Map<Band, Long> result = new EnumMap<>(Band.class);
        for (int r = 0; r < rows.size(); r++) {
            long count = 0;
            for (boolean free : freeInRow(r, now)) {
                count += free ? 1 : 0;
            }
            result.merge(rows.get(r).band(), count, Long::sum);
        }
        return result;
    }

    /** A picture for the terminal at the door: {@code .} is free, {@code o} held, {@code #} sold. */
    public String draw(long now) {
        return IntStream.range(0, rows.size())
                .mapToObj(r -> (char) ('A' + r) + " " + drawRow(r, now))
                .collect(Collectors.joining("\n"));
    }

    private String drawRow(int row, long now) {
        StringBuilder line = new StringBuilder();
        for (int n = 0; n < rows.get(row).seats(); n++) {
            Seat seat = new Seat(row, n);
            line.append(sold.containsKey(seat) ? '#' : isFree(seat, now) ? '.' : 'o');
        }
        return line.toString();
    }

    private void requireExists(Seat seat) {
        boolean exists =
                seat.row() >= 0
                        && seat.row() < rows.size()
                        && seat.number() >= 0
                        && seat.number() < rows.get(seat.row()).seats();
        if (!exists) {
            throw new IllegalArgumentException("there is no seat " + seat);
        }
    }
}
