package duckdb

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// invalidated is what DuckDB says of a database that it has given up, as it
// does where a checkpoint finds the disk full: all that was committed is in
// its files, and it must be attached again.
const invalidated = "has been invalidated"

// revive attaches a database again if that is what an error asks for.
func (s *Store) revive(ctx context.Context, cause error, name, path string) error {
	if cause == nil || !strings.Contains(cause.Error(), invalidated) {
		return nil
	}
	return s.reattach(context.WithoutCancel(ctx), name, path)
}

func (s *Store) reattach(ctx context.Context, name, path string) error {
	s.read.Lock() // waits for the questions that use it
	defer s.read.Unlock()
	if _, err := s.db.ExecContext(ctx, "DETACH DATABASE IF EXISTS "+name); err != nil {
		return fmt.Errorf("close %s: %w", path, err)
	}
	if _, err := s.db.ExecContext(ctx, fmt.Sprintf("ATTACH %s AS %s", quote(path), name)); err != nil {
		return fmt.Errorf("open %s again: %w", path, err)
	}
	return nil
}

// recover makes the slice that takes writes fit for them after one failed:
// what that transaction would have written is numbered anew.
func (s *Store) recover(ctx context.Context) error {
	sl := s.last()
	err := sl.loadDictionary(ctx, s.db)
	if err != nil {
		if err := s.reattach(ctx, sl.name, sl.path); err != nil {
			return err
		}
		err = errors.Join(sl.load(ctx, s.db), sl.loadDictionary(ctx, s.db))
	}
	if err == nil {
		s.failed = false
	}
	return err
}
