package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/ClickHouse/clickhouse-go/v2"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/queries"
)

// What one SELECT may cost the server.
const (
	sqlMemory  = 4 << 30
	sqlSeconds = 30
)

// SQL implements store.Store. The server is asked in its read-only mode, in
// which it changes nothing, neither data nor settings. The text is looked at
// before: a read-only user may still read the server's own tables, and
// whatever files and addresses its functions reach.
func (s *Store) SQL(ctx context.Context, sight flow.Sight, text string, maxRows int) (store.Rows, error) {
	if !sight.All() {
		return store.Rows{}, store.ErrSight
	}
	if err := s.checkSQL(ctx, text); err != nil {
		return store.Rows{}, err
	}
	if queries.Reads(text, "edges") {
		if err := s.sumUp(ctx); err != nil {
			return store.Rows{}, err
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // an answer that is too long ends the query
	rows, err := s.conn.Query(settings(ctx, clickhouse.Settings{
		"max_execution_time": sqlSeconds, "max_memory_usage": sqlMemory, "readonly": 1,
	}), text)
	if err != nil {
		return store.Rows{}, sqlError(ctx, err)
	}
	out, err := readRows(rows, maxRows)
	return out, sqlError(ctx, err)
}

// sqlError is the asker's to mend where the server says so.
func sqlError(ctx context.Context, err error) error {
	var said *clickhouse.Exception
	if err != nil && ctx.Err() == nil && errors.As(err, &said) {
		return fmt.Errorf("%w: %w", store.ErrArgument, err)
	}
	return err
}

// checkSQL refuses what is more than one SELECT over the views.
func (s *Store) checkSQL(ctx context.Context, text string) error {
	words, err := scanSQL(text)
	if err != nil {
		return fmt.Errorf("%w: %w", store.ErrArgument, err)
	}
	if len(words) == 0 || !slices.Contains([]string{"select", "with"}, words[0].text) || words[0].quoted {
		return fmt.Errorf("%w: only SELECT can be asked", store.ErrArgument)
	}
	functions, err := s.list(ctx, "table_functions")
	if err != nil {
		return fmt.Errorf("read SQL: %w", err)
	}
	databases, err := s.list(ctx, "databases")
	if err != nil {
		return fmt.Errorf("read SQL: %w", err)
	}
	return checkWords(words, functions, databases)
}

// harmless table functions reach nothing.
var harmless = [...]string{"numbers", "numbers_mt", "generateseries", "generate_series", "null", "values"}

// beyond are functions that reach beyond the statement, and are no table functions.
var beyond = [...]string{"file", "dictget", "joinget", "catboostevaluate", "modelevaluate", "getmacro", "hostname", "sleep", "sleepeachrow"}

func checkWords(words []word, functions, databases []string) error {
	for i, w := range words {
		next, before := "", ""
		if i+1 < len(words) {
			next = words[i+1].text
		}
		if i > 0 {
			before = words[i-1].text
		}
		name := strings.ToLower(w.text)
		switch {
		case w.text == ";" && !w.quoted:
			return fmt.Errorf("%w: want one SELECT", store.ErrArgument)
		case !w.name:
		case !w.quoted && slices.Contains([]string{"settings", "format", "outfile"}, name):
			return fmt.Errorf("%w: %s is not allowed here", store.ErrArgument, strings.ToUpper(name))
		case next == "(" && !slices.Contains(harmless[:], name) && (slices.Contains(functions, name) || slices.Contains(beyond[:], name)):
			return fmt.Errorf("%w: the function %s reaches beyond the flows: it is not allowed", store.ErrArgument, w.text)
		case next == "." && before != "." && slices.Contains(databases, name):
			return fmt.Errorf("%w: there is no table %s.…: there are %s", store.ErrArgument, w.text, strings.Join(queries.Views(), ", "))
		}
	}
	return nil
}

// list reads the names of one of the server's own tables, in lower case.
func (s *Store) list(ctx context.Context, table string) ([]string, error) {
	rows, err := s.conn.Query(ctx, "SELECT lower(name) FROM system."+table)
	if err != nil {
		return nil, err
	}
	var out []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		out = append(out, name)
	}
	return out, closing(rows)
}

// word is a part of an SQL text.
type word struct {
	text         string // in lower case unless it is quoted
	name, quoted bool
}

// scanSQL cuts an SQL text into names and signs. Texts and comments are left
// out; a text that does not end is an error.
func scanSQL(text string) ([]word, error) {
	var out []word
	for i := 0; i < len(text); {
		c := text[i]
		switch {
		case c == '\'':
			_, n := quotedEnd(text[i:], c)
			if n < 0 {
				return nil, errors.New("a quote does not end")
			}
			i += n
		case c == '"' || c == '`':
			name, n := quotedEnd(text[i:], c)
			if n < 0 {
				return nil, errors.New("a quote does not end")
			}
			out = append(out, word{strings.ToLower(name), true, true})
			i += n
		case strings.HasPrefix(text[i:], "--") || c == '#':
			n := strings.IndexByte(text[i:], '\n')
			if n < 0 {
				return out, nil
			}
			i += n
		case strings.HasPrefix(text[i:], "/*"):
			n := strings.Index(text[i+2:], "*/")
			if n < 0 {
				return nil, errors.New("a comment does not end")
			}
			i += n + 4
		case isNameByte(c):
			n := i
			for n < len(text) && isNameByte(text[n]) {
				n++
			}
			out = append(out, word{strings.ToLower(text[i:n]), true, false})
			i = n
		case c == '$':
			return nil, errors.New("$ is not allowed here")
		default:
			if c > ' ' {
				out = append(out, word{string(c), false, false})
			}
			i++
		}
	}
	return out, nil
}

func isNameByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

// quotedEnd reads a quoted text; n is how long it is, negative if it does not
// end. Two quotes in a row, and one after a backslash, do not end it.
func quotedEnd(text string, quote byte) (content string, n int) {
	var b strings.Builder
	for i := 1; i < len(text); i++ {
		switch {
		case text[i] == '\\' && i+1 < len(text):
			i++
		case text[i] == quote && i+1 < len(text) && text[i+1] == quote:
			i++
		case text[i] == quote:
			return b.String(), i + 1
		}
		b.WriteByte(text[i])
	}
	return "", -1
}
