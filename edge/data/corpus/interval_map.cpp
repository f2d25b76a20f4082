// A map from half-open ranges to values, for address spaces, calendars and colour runs in text.
//
// assign(2, 8, 'a') makes every key in [2, 8) have the value 'a', whatever was there before.
// Neighbours with equal values are kept as one, so the map is always as small as it can be.

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <initializer_list>
#include <iostream>
#include <map>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace ranges_of {

template <typename Key, typename Value>
class IntervalMap {
public:
    struct Piece {
        Key first;
        Key last;  // one past the end
        Value value;

        friend bool operator==(const Piece& a, const Piece& b) {
            return a.first == b.first && a.last == b.last && a.value == b.value;
        }
    };

    void assign(const Key& first, const Key& last, Value value) {
        if (!(first < last)) {
            if (last < first) throw std::invalid_argument("a range ends before it starts");
            return;
        }
        cut(first, last);
        auto it = nodes_.insert_or_assign(first, Node{last, std::move(value)}).first;
        join(it);
    }

    void erase(const Key& first, const Key& last) {
        if (first < last) cut(first, last);
    }

    // Applies `change` to every stretch of [first, last): it gets the old value, or nothing, and
    // returns the new value, or nothing to leave a gap.
    template <typename Change>
    void transform(const Key& first, const Key& last, Change change) {
        std::vector<std::pair<std::pair<Key, Key>, std::optional<Value>>> results;
        Key at = first;
        for (const Piece& piece : within(first, last)) {
            if (at < piece.first) results.push_back({{at, piece.first}, change(std::nullopt)});
            results.push_back({{piece.first, piece.last}, change(std::optional<Value>(piece.value))});
            at = piece.last;
        }
        if (at < last) results.push_back({{at, last}, change(std::nullopt)});

        for (auto& [range, value] : results) {
            if (value) {
                assign(range.first, range.second, std::move(*value));
            } else {
                erase(range.first, range.second);
            }
        }
    }

    const Value* find(const Key& key) const {
        auto it = nodes_.upper_bound(key);
        if (it == nodes_.begin()) return nullptr;
        --it;
        return key < it->second.last ? &it->second.value : nullptr;
    }

    // The pieces that overlap [first, last), clipped to it.
    std::vector<Piece> within(const Key& first, const Key& last) const {
        std::vector<Piece> result;
        auto it = nodes_.upper_bound(first);
        if (it != nodes_.begin()) --it;
        for (; it != nodes_.end() && it->first < last; ++it) {
            Key from = std::max(first, it->first);
            Key to = std::min(last, it->second.last);
            if (from < to) result.push_back({from, to, it->second.value});
        }
        return result;
    }

    std::vector<Piece> pieces() const {
        std::vector<Piece> result;
        result.reserve(nodes_.size());
        for (const auto& [first, node] : nodes_) result.push_back({first, node.last, node.value});
        return result;
    }

    std::size_t size() const noexcept { return nodes_.size(); }
    bool empty() const noexcept { return nodes_.empty(); }
    void clear() noexcept { nodes_.clear(); }

private:
    struct Node {
        Key last;
        Value value;
    };
    using Nodes = std::map<Key, Node>;

    // Makes [first, last) a gap, splitting what sticks out on either side.
    void cut(const Key& first, const Key& last) {
        auto it = nodes_.lower_bound(first);
        if (it != nodes_.begin()) {
            auto before = std::prev(it);
            if (first < before->second.last) {
                if (last < before->second.last) {
                    nodes_.emplace_hint(it, last, before->second);
                }
                before->second.last = first;
                it = std::next(before);
            }
        }
        while (it != nodes_.end() && it->first < last) {
            if (last < it->second.last) {
                Node rest = std::move(it->second);
                nodes_.erase(it);
                nodes_.emplace(last, std::move(rest));
                return;
            }
            it = nodes_.erase(it);
        }
    }

    void join(typename Nodes::iterator it) {
        auto next = std::next(it);
        if (next != nodes_.end() && next->first == it->second.last &&
            next->second.value == it->second.value) {
            it->second.last = next->second.last;
            nodes_.erase(next);
        }
        if (it == nodes_.begin()) return;
        auto previous = std::prev(it);
        if (previous->second.last == it->first && previous->second.value == it->second.value) {
            previous->second.last = it->second.last;
            nodes_.erase(it);
        }
    }

    Nodes nodes_;
};

template <typename Key, typename Value>
std::ostream& operator<<(std::ostream& out, const IntervalMap<Key, Value>& map) {
    const char* separator = "";
    for (const auto& piece : map.pieces()) {
        out << separator << '[' << piece.first << ", " << piece.last << ") " << piece.value;
        separator = "; ";
    }
    return out;
}

}  // namespace ranges_of

using ranges_of::IntervalMap;

static void compare_with_an_array(std::uint32_t seed) {
    constexpr int kSize = 40;
    std::mt19937 random(seed);
    IntervalMap<int, int> map;
    std::vector<int> cells(kSize, -1);  // -1 is a gap

    for (int step = 0; step < 300; ++step) {
        int a = static_cast<int>(random() % (kSize + 1));
        int b = static_cast<int>(random() % (kSize + 1));
        if (b < a) std::swap(a, b);
        int value = static_cast<int>(random() % 4) - 1;
        std::fill(cells.begin() + a, cells.begin() + b, value);
        if (value < 0) {
            map.erase(a, b);
        } else {
            map.assign(a, b, value);
        }

        std::size_t runs = 0;
        for (int key = 0; key < kSize; ++key) {
            const int* found = map.find(key);
            assert((found ? *found : -1) == cells[key]);
            if (cells[key] >= 0 && (key == 0 || cells[key - 1] != cells[key])) ++runs;
        }
        // Erasing the middle of a run leaves two pieces with a gap between, never two that touch.
        assert(map.size() == runs);
    }
}

int main() {
    IntervalMap<int, std::string> shifts;
    shifts.assign(8, 16, "early");
    shifts.assign(16, 22, "late");
    shifts.assign(12, 13, "lunch");
    std::ostringstream text;
    text << shifts;
    assert(text.str() == "[8, 12) early; [12, 13) lunch; [13, 16) early; [16, 22) late");

    shifts.assign(12, 13, "early");
    assert(shifts.size() == 2);

    IntervalMap<int, int> staff;
    auto one_more = [](std::optional<int> n) { return std::optional<int>(n.value_or(0) + 1); };
    staff.transform(8, 16, one_more);
    staff.transform(12, 20, one_more);
    using Piece = IntervalMap<int, int>::Piece;
    assert((staff.pieces() == std::vector<Piece>{{8, 12, 1}, {12, 16, 2}, {16, 20, 1}}));

    for (std::uint32_t seed = 0; seed < 50; ++seed) compare_with_an_array(seed);
    std::cout << "interval_map: all checks passed\n";
}
