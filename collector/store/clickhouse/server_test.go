package clickhouse

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/clickhouse/clickhousetest"
	"github.com/flowaudit/flowaudit/collector/store/storetest"
)

// servers are those that the tests of this package use, each test with a
// database of its own. Those that are not installed are nil.
type servers struct {
	old   *clickhousetest.Server // Debian's clickhouse-server
	today *clickhousetest.Server // libchdb behind test/chdb
}

var shared servers

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "flowaudit-clickhouse-")
	if err == nil {
		defer os.RemoveAll(dir)
		shared.old, err = start(filepath.Join(dir, "old"), func(dir string) (*clickhousetest.Server, error) {
			return clickhousetest.Start(clickhousetest.Options{Dir: dir})
		})
	}
	if err == nil {
		shared.today, err = start(filepath.Join(dir, "today"), clickhousetest.StartLibrary)
	}
	for _, s := range []*clickhousetest.Server{shared.old, shared.today} {
		if s != nil {
			defer s.Kill()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// start starts a server in a directory of its own, if it is installed.
func start(dir string, f func(dir string) (*clickhousetest.Server, error)) (*clickhousetest.Server, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	s, err := f(dir)
	if errors.Is(err, exec.ErrNotFound) {
		return nil, nil
	}
	return s, err
}

var databases atomic.Int64

// newDatabase is the URL of an empty database.
func newDatabase(t *testing.T, s *clickhousetest.Server) string {
	t.Helper()
	if s == nil {
		missing(t)
	}
	return s.URL(databaseName())
}

func databaseName() string { return fmt.Sprintf("test%d", databases.Add(1)) }

// missing skips a test whose server is not installed.
func missing(t *testing.T) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal("the server is not installed: make test installs it")
	}
	t.Skip("the server is not installed: make test installs it")
}

func open(t *testing.T, url string, now func() time.Time) *Store {
	t.Helper()
	s, err := Open(t.Context(), Options{URL: url, Logger: slog.New(slog.DiscardHandler), Now: now, Pace: -1, Slice: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	s.eager = true                      // slow machines must not see old edges
	t.Cleanup(func() { _ = s.Close() }) // a test may have closed it
	return s
}

func TestOldServer(t *testing.T) { storetest.Run(t, factory(shared.old)) }

func TestToday(t *testing.T) { storetest.Run(t, factory(shared.today)) }

func factory(server *clickhousetest.Server) storetest.Factory {
	return suite(func(t *testing.T) string { return newDatabase(t, server) })
}

// suite makes stores in databases of these URLs.
func suite(newURL func(t *testing.T) string) storetest.Factory {
	return func(t *testing.T) storetest.Fixture {
		url := newURL(t)
		var passed atomic.Int64
		now := func() time.Time { return storetest.T0.Add(time.Duration(passed.Load())) }
		s := open(t, url, now)
		return storetest.Fixture{
			Store:   s,
			Advance: func(d time.Duration) { passed.Add(int64(d)) },
			Reopen: func(t *testing.T) store.Store {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				return open(t, url, now)
			},
		}
	}
}
