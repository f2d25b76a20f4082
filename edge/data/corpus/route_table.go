// Package dispatch matches the paths of HTTP requests against patterns such as
// /orders/{id:int}/lines/{line} and /files/{path...}.
//
// Literal segments win over parameters, parameters over the rest of a path, and that decision is
// made from left to right with backtracking, so the order of registration does not matter.
package dispatch

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"sync"
)

// ErrDuplicate is wrapped by the error of Add when a pattern is already there.
var ErrDuplicate = errors.New("pattern is already registered")

// Params are the values of a pattern's parameters for one request.
type Params map[string]string

// Int returns a parameter declared as {name:int}.
func (p Params) Int(name string) int {
	n, err := strconv.Atoi(p[name])
	if err != nil {
		panic(fmt.Sprintf("dispatch: %s is no int parameter", name))
	}
	return n
}

// Handler is called with the parameters of the pattern that matched.
type Handler func(w http.ResponseWriter, r *http.Request, p Params)

type kind int

const (
	literal kind = iota
	integer
	word
	rest
)

type segment struct {
	kind kind
	text string // the literal itself or the name of the parameter
}

type node struct {
	literals map[string]*node
	integers *node
	words    *node
	rest     *node
	routes   map[string]*route // by method
}

type route struct {
	pattern string
	names   []string
	handler Handler
}

// Table is a set of routes. Its zero value is ready to use.
type Table struct {
	mu   sync.RWMutex
	root node

	// NotFound answers what no pattern matches. If it is nil, http.NotFound does.
	NotFound http.HandlerFunc
}

// Add registers a handler for a method and a pattern.
func (t *Table) Add(method, pattern string, handler Handler) error {
	segments, err := parse(pattern)
	if err != nil {
		return fmt.Errorf("%s %s: %w", method, pattern, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()

	at := &t.root
	var names []string
	for _, s := range segments {
		if s.kind != literal {
			names = append(names, s.text)
		}
		at = at.child(s)
	}
	if old, ok := at.routes[method]; ok {
		return fmt.Errorf("%s %s: %w as %s", method, pattern, ErrDuplicate, old.pattern)
	}
	if at.routes == nil {
		at.routes = make(map[string]*route)
	}
	at.routes[method] = &route{pattern: pattern, names: names, handler: handler}
	return nil
}

func parse(pattern string) ([]segment, error) {
	if !strings.HasPrefix(pattern, "/") {
		return nil, errors.New("a pattern starts with a slash")
	}
	parts := strings.Split(pattern[1:], "/")
	seen := make(map[string]bool)
	segments := make([]segment, 0, len(parts))
	for i, part := range parts {
		s, err := parseSegment(part)
		if err != nil {
			return nil, err
		}
		if s.kind == rest && i != len(parts)-1 {
			return nil, fmt.Errorf("%q must come last", part)
		}
		if s.kind != literal {
			if seen[s.text] {
				return nil, fmt.Errorf("parameter %q is there twice", s.text)
			}
			seen[s.text] = true
		}
		segments = append(segments, s)
	}
	return segments, nil
}

func parseSegment(part string) (segment, error) {
	if !strings.HasPrefix(part, "{") {
		if strings.ContainsAny(part, "{}") {
			return segment{}, fmt.Errorf("a parameter must fill the whole of %q", part)
		}
		return segment{literal, part}, nil
	}
	inner, ok := strings.CutSuffix(part[1:], "}")
	if !ok {
		return segment{}, fmt.Errorf("%q has no closing brace", part)
	}
	name, k := inner, word
	if before, found := strings.CutSuffix(inner, "..."); found {
		name, k = before, rest
	} else if before, typ, found := strings.Cut(inner, ":"); found {
		if typ != "int" {
			return segment{}, fmt.Errorf("%q has the unknown type %q", part, typ)
		}
		name, k = before, integer
	}
	if name == "" {
		return segment{}, fmt.Errorf("%q has no name", part)
	}
	return segment{k, name}, nil
}

func (n *node) child(s segment) *node {
	var slot **node
	switch s.kind {
	case literal:
		if n.literals == nil {
			n.literals = make(map[string]*node)
		}
		if n.literals[s.text] == nil {
			n.literals[s.text] = &node{}
		}
		return n.literals[s.text]
	case integer:
		slot = &n.integers
	case word:
		slot = &n.words
	default:
		slot = &n.rest
	}
	if *slot == nil {
		*slot = &node{}
	}
	return *slot
}

// find walks the tree; values holds what the parameters on the way have matched.
func (n *node) find(parts, values []string) (*node, []string) {
	if len(parts) == 0 {
		if n.routes != nil {
			return n, values
		}
		return nil, nil
	}
	head, tail := parts[0], parts[1:]
	if next := n.literals[head]; next != nil {
		if end, found := next.find(tail, values); end != nil {
			return end, found
		}
	}
	if n.integers != nil && isInteger(head) {
		if end, found := n.integers.find(tail, push(values, head)); end != nil {
			return end, found
		}
	}
	if n.words != nil && head != "" {
		if end, found := n.words.find(tail, push(values, head)); end != nil {
			return end, found
		}
	}
	if n.rest != nil {
		return n.rest, push(values, strings.Join(parts, "/"))
	}
	return nil, nil
}

// push never shares memory with values: another branch may still append to it.
func push(values []string, value string) []string {
	return append(values[:len(values):len(values)], value)
}

func isInteger(s string) bool {
	_, err := strconv.Atoi(s)
	return err == nil
}

// split cuts a path at its slashes before it decodes it, so %2F stays within a segment.
func split(path string) ([]string, error) {
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, part := range parts {
		decoded, err := url.PathUnescape(part)
		if err != nil {
			return nil, err
		}
		parts[i] = decoded
	}
	return parts, nil
}

// ServeHTTP implements http.Handler.
func (t *Table) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	parts, err := split(r.URL.EscapedPath())
	if err != nil {
		http.Error(w, "malformed path", http.StatusBadRequest)
		return
	}
	t.mu.RLock()
	end, values := t.root.find(parts, nil)
	var found *route
	var allowed []string
	if end != nil {
		found = end.routes[r.Method]
		if found == nil && r.Method == http.MethodHead {
			found = end.routes[http.MethodGet]
		}
		allowed = end.methods()
	}
	t.mu.RUnlock()

	switch {
	case end == nil && t.NotFound != nil:
		t.NotFound(w, r)
	case end == nil:
		http.NotFound(w, r)
	case found == nil:
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
	default:
		params := make(Params, len(values))
		for i, name := range found.names {
			params[name] = values[i]
		}
		found.handler(w, r, params)
	}
}

func (n *node) methods() []string {
	methods := make([]string, 0, len(n.routes))
	for method := range n.routes {
		methods = append(methods, method)
	}
	sort.Strings(methods)
	return methods
}

// examples documents what matches what; the tests run over it.
var examples = []struct {
	pattern, path string
	want          Params
}{
	{"/orders/{id:int}", "/orders/42", Params{"id": "42"}},
	{"/orders/{name}", "/orders/größte", Params{"name": "größte"}},
	{"/orders/latest", "/orders/latest", Params{}},
	{"/cafés/{city}/menu", "/cafés/Århus/menu", Params{"city": "Århus"}},
	{"/files/{path...}", "/files/a/b%20c/日本.txt", Params{"path": "a/b c/日本.txt"}},
}
