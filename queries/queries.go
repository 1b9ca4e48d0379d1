// Package queries holds the questions that flowaudit answers, one SQL file each.
package queries

import (
	"bufio"
	"embed"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed *.sql
var files embed.FS

// Type is what an argument may be.
type Type string

// The types.
const (
	String  Type = "string"
	Int     Type = "int"     // from 1: a limit, or a length
	Since   Type = "since"   // a duration back from now such as 1h or 7d, or an RFC 3339 time
	Address Type = "address" // an IP address
)

// Argument of a question.
type Argument struct {
	Name     string
	Type     Type
	Default  string
	Required bool
	Text     string
	Max      int64 // of an Int; 0 for any
}

// Question is a named query. Its SQL reads the views that every store
// provides, and refers to arguments as $name. It is written in what the
// dialects of all stores have in common: times are Unix milliseconds,
// ORDER BY names its columns, there is no WITH. What only one dialect has,
// the others' stores define as macros: intDiv, arrayJoin and splitByChar.
type Question struct {
	Name  string
	Text  string // one sentence, the question
	Note  string // what else there is to know; may be empty
	Args  []Argument
	Times []string // columns of the answer that are times
	// Whole says why only who sees everything can ask it; empty where the answer
	// is right for who sees some namespaces.
	Whole string
	SQL   string
}

// Views are what questions read. Every store defines them alike; docs/sql.md
// lists their columns.
var views = []string{"flows", "edges", "gaps", "coverage", "changes", "identities", "rules"}

// Totals is what questions about all flows read instead of flows: rows have the
// columns of the view but those of a single flow, and each is the sum of flows
// that a node reported of one kind, from start_ms, the first one's, to end_ms, the
// last end; flows says how many. A store may sum up as much as it likes, if all
// of it starts at the argument since or later, and if flows with and without
// connections stay apart.
const Totals = "totals"

var tables = regexp.MustCompile(`FROM ([a-z]+)\b`)

// With is the question's SQL with a store's own SQL in the place of what it
// reads: sub says what for Totals or a view, and empty to leave it.
func (q *Question) With(sub func(table string) string) string {
	return tables.ReplaceAllStringFunc(q.SQL, func(text string) string {
		if own := sub(strings.TrimPrefix(text, "FROM ")); own != "" {
			return "FROM " + own
		}
		return text
	})
}

// Views lists the views that every store provides.
func Views() []string { return slices.Clone(views) }

// Reads reports whether an SQL text reads a view.
func Reads(sql, view string) bool {
	for rest := strings.ToLower(sql); ; {
		i := strings.Index(rest, view)
		if i < 0 {
			return false
		}
		if before, after := rest[:i], rest[i+len(view):]; !endsInName(before) && !beginsWithName(after) {
			return true
		}
		rest = rest[i+len(view):]
	}
}

func isName(c byte) bool { return c == '_' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }

func endsInName(s string) bool { return s != "" && isName(s[len(s)-1]) }

func beginsWithName(s string) bool { return s != "" && isName(s[0]) }

// Present turns a row of the answer, whose columns are given, into what people
// read: times are time.Time in UTC.
func (q *Question) Present(columns []string, row []any) {
	for i, name := range columns {
		if ms, ok := row[i].(int64); ok && slices.Contains(q.Times, name) {
			row[i] = time.UnixMilli(ms).UTC()
		}
	}
}

// All returns the questions by name.
func All() []Question {
	entries, err := files.ReadDir(".")
	if err != nil {
		return nil // the files are in the binary
	}
	var out []Question
	for _, e := range entries {
		text, _ := files.ReadFile(e.Name())
		if q, err := parse(strings.TrimSuffix(e.Name(), ".sql"), string(text)); err == nil {
			out = append(out, q) // a test reads every file without an error
		}
	}
	return out
}

// Find returns the question with a name; the error lists what there is.
func Find(name string) (Question, error) {
	all := All()
	var names []string
	for _, q := range all {
		if q.Name == name {
			return q, nil
		}
		names = append(names, q.Name)
	}
	return Question{}, fmt.Errorf("no question %q: there are %s", name, strings.Join(names, ", "))
}

// parse reads a file: comment lines with the question's sentence and what else
// there is to know, one for each argument as "-- arg NAME TYPE [DEFAULT]: text",
// one as "-- times COLUMN, …" with the columns that are times, one as
// "-- whole: WHY" where who sees some namespaces cannot ask it, then the SQL.
func parse(name, file string) (Question, error) {
	q := Question{Name: name}
	lines := bufio.NewScanner(strings.NewReader(file))
	var body strings.Builder
	for lines.Scan() {
		comment, is := strings.CutPrefix(lines.Text(), "-- ")
		switch {
		case !is:
			body.WriteString(lines.Text() + "\n")
		case strings.HasPrefix(comment, "arg "):
			a, err := parseArgument(strings.TrimPrefix(comment, "arg "))
			if err != nil {
				return q, fmt.Errorf("read question %s: %w", name, err)
			}
			q.Args = append(q.Args, a)
		case strings.HasPrefix(comment, "times "):
			q.Times = strings.Split(strings.TrimPrefix(comment, "times "), ", ")
		case strings.HasPrefix(comment, "whole: "):
			q.Whole = strings.TrimPrefix(comment, "whole: ")
		case strings.HasSuffix(q.Text, "?"):
			q.Note = strings.TrimSpace(q.Note + " " + comment)
		default:
			q.Text = strings.TrimSpace(q.Text + " " + comment)
		}
	}
	q.SQL = strings.TrimSpace(body.String())
	if q.Text == "" || q.SQL == "" {
		return q, fmt.Errorf("read question %s: needs a sentence and SQL", name)
	}
	return q, nil
}

func parseArgument(s string) (Argument, error) {
	head, text, ok := strings.Cut(s, ": ")
	fields := strings.Fields(head)
	if !ok || len(fields) < 2 || len(fields) > 3 {
		return Argument{}, fmt.Errorf("argument %q: want NAME TYPE [DEFAULT]: text", s)
	}
	a := Argument{Name: fields[0], Type: Type(fields[1]), Required: len(fields) == 2, Text: text}
	if !a.Required {
		a.Default = strings.Trim(fields[2], `"`)
	}
	if bounded, limit, is := strings.Cut(fields[1], "<="); is {
		a.Type = Type(bounded)
		var err error
		if a.Max, err = strconv.ParseInt(limit, 10, 64); err != nil || a.Type != Int {
			return a, fmt.Errorf("argument %s: %q is no bounded int", a.Name, fields[1])
		}
	}
	if !slices.Contains([]Type{String, Int, Since, Address}, a.Type) {
		return a, fmt.Errorf("argument %s: unknown type %q", a.Name, a.Type)
	}
	return a, nil
}

// Bind checks what was given and returns a value for each argument: string,
// int64, or time.Time for Since.
func (q *Question) Bind(given map[string]string, now time.Time) (map[string]any, error) {
	for name := range given {
		if !slices.ContainsFunc(q.Args, func(a Argument) bool { return a.Name == name }) {
			return nil, fmt.Errorf("question %s has no argument %q: it has %s", q.Name, name, q.argumentNames())
		}
	}
	out := make(map[string]any)
	for _, a := range q.Args {
		text, ok := given[a.Name]
		if !ok {
			if a.Required {
				return nil, fmt.Errorf("question %s needs argument %q: %s", q.Name, a.Name, a.Text)
			}
			text = a.Default
		}
		v, err := a.value(text, now)
		if err != nil {
			return nil, fmt.Errorf("argument %s of question %s: %w", a.Name, q.Name, err)
		}
		out[a.Name] = v
	}
	return out, nil
}

func (q *Question) argumentNames() string {
	var names []string
	for _, a := range q.Args {
		names = append(names, a.Name)
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func (a *Argument) value(text string, now time.Time) (any, error) {
	switch a.Type {
	case Int:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is no whole number from 1", text)
		}
		if a.Max > 0 && n > a.Max {
			return nil, fmt.Errorf("%d is more than %d, the most that this question can", n, a.Max)
		}
		return n, nil
	case Since:
		return ParseSince(text, now)
	case Address:
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("%q is no IP address", text)
		}
		return addr.Unmap().String(), nil
	}
	return text, nil
}

// maxDays is what a time.Duration holds, and more than any store.
const maxDays = 100_000

// ParseSince reads a duration back from now, such as 90s, 5m, 2h or 7d, an
// RFC 3339 time, or a local date with or without a time of day.
func ParseSince(text string, now time.Time) (time.Time, error) {
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.ParseFloat(days, 64); err == nil && n >= 0 && n <= maxDays {
			return now.Add(-time.Duration(n * 24 * float64(time.Hour))), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, time.DateTime, "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02T15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: want a duration back from now such as 5m, 2h or 7d, an RFC 3339 time, or a date", text)
}
