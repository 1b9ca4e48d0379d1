package duckdb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/queries"
)

// SQL implements store.Store. Three things keep it to reading: DuckDB's own
// parser must find one SELECT that names nothing but the views, the
// transaction is read-only, and the configuration that keeps DuckDB from files
// and extensions is locked.
func (s *Store) SQL(ctx context.Context, sight flow.Sight, text string, maxRows int) (out store.Rows, err error) {
	if !sight.All() {
		return out, store.ErrSight
	}
	if err := s.checkSQL(ctx, text); err != nil {
		return out, err
	}
	s.read.RLock()
	defer s.read.RUnlock()
	if err := s.refresh(ctx, text); err != nil {
		return out, err
	}
	if err := s.defineViews(ctx, text); err != nil {
		return out, err
	}
	conn, end, err := s.reading(ctx)
	if err != nil {
		return out, fmt.Errorf("answer SQL: %w", err)
	}
	defer end()
	rows, err := conn.QueryContext(ctx, text)
	if err != nil {
		return out, sqlError(ctx, err)
	}
	defer rows.Close()
	out, err = readRows(rows, maxRows)
	return out, sqlError(ctx, err)
}

// sqlError is the asker's to mend unless time ran out.
func sqlError(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return errors.Join(err, ctx.Err())
	}
	return fmt.Errorf("%w: %w", store.ErrArgument, err)
}

// tableFunctions are those that reach nothing outside of the statement.
var tableFunctions = [...]string{"unnest", "range", "generate_series"}

// checkSQL refuses what is more than one SELECT over the views.
func (s *Store) checkSQL(ctx context.Context, text string) error {
	var tree string
	if err := s.db.QueryRowContext(ctx, "SELECT json_serialize_sql(?::VARCHAR)::VARCHAR", text).Scan(&tree); err != nil {
		return fmt.Errorf("read SQL: %w", err)
	}
	var parsed struct {
		Error      bool   `json:"error"`
		Type       string `json:"error_type"`
		Message    string `json:"error_message"`
		Statements []any  `json:"statements"`
	}
	if err := json.Unmarshal([]byte(tree), &parsed); err != nil {
		return fmt.Errorf("read SQL: %w", err)
	}
	switch {
	case parsed.Error && parsed.Type == "parser":
		return fmt.Errorf("%w: %s", store.ErrArgument, parsed.Message)
	case parsed.Error:
		return fmt.Errorf("%w: only SELECT can be asked: %s", store.ErrArgument, parsed.Message)
	case len(parsed.Statements) != 1:
		return fmt.Errorf("%w: want one SELECT, not %d statements", store.ErrArgument, len(parsed.Statements))
	}
	names := slices.Concat(queries.Views(), commonTables(parsed.Statements))
	return checkTables(parsed.Statements, names)
}

// walk calls f with every object of a parse tree.
func walk(node any, f func(map[string]any) error) error {
	switch x := node.(type) {
	case []any:
		for _, n := range x {
			if err := walk(n, f); err != nil {
				return err
			}
		}
	case map[string]any:
		if err := f(x); err != nil {
			return err
		}
		for _, n := range x {
			if err := walk(n, f); err != nil {
				return err
			}
		}
	}
	return nil
}

// commonTables are the names that a statement's WITH clauses define.
func commonTables(tree any) []string {
	var names []string
	_ = walk(tree, func(n map[string]any) error { // finds no fault
		with, _ := n["cte_map"].(map[string]any)
		entries, _ := with["map"].([]any)
		for _, e := range entries {
			entry, _ := e.(map[string]any)
			if name, is := entry["key"].(string); is {
				names = append(names, strings.ToLower(name))
			}
		}
		return nil
	})
	return names
}

func checkTables(tree any, names []string) error {
	return walk(tree, func(n map[string]any) error {
		text := func(key string) string { s, _ := n[key].(string); return s }
		switch text("type") {
		case "BASE_TABLE":
			if text("schema_name") != "" || text("catalog_name") != "" || !slices.Contains(names, strings.ToLower(text("table_name"))) {
				return fmt.Errorf("%w: there is no table %q: there are %s", store.ErrArgument, text("table_name"), strings.Join(queries.Views(), ", "))
			}
		case "TABLE_FUNCTION":
			function, _ := n["function"].(map[string]any)
			if name, _ := function["function_name"].(string); !slices.Contains(tableFunctions[:], strings.ToLower(name)) {
				return fmt.Errorf("%w: the function %s reaches beyond the flows: it is not allowed", store.ErrArgument, name)
			}
		case "SHOW_REF":
			return fmt.Errorf("%w: only SELECT can be asked", store.ErrArgument)
		}
		return nil
	})
}
