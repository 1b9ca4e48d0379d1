package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/flowaudit/flowaudit/collector/store"
	"github.com/flowaudit/flowaudit/collector/store/archive"
	"github.com/flowaudit/flowaudit/collector/store/duckdb"
)

const storeUsage = `Moves what a store holds, by whole days of UTC, with the timeline.

Usage:
  flowaudit-collector store copy   --from STORE --to STORE
  flowaudit-collector store export --from STORE --to DIRECTORY
  flowaudit-collector store import --from DIRECTORY --to STORE
  flowaudit-collector store verify --from STORE|DIRECTORY --to STORE|DIRECTORY

STORE is duckdb:DIRECTORY, which no collector may use meanwhile, or the URL of a ClickHouse.
DIRECTORY, given as parquet:DIRECTORY or without a scheme, holds a folder of Parquet files for
each day. Each command can be repeated after a break: what is there already is not moved again.
copy and import verify what they moved by counts and a checksum of each day.

Examples:
  flowaudit-collector store copy --from duckdb:/var/lib/flowaudit --to clickhouse://flowaudit:…@clickhouse:9000/flowaudit
  flowaudit-collector store export --from duckdb:/var/lib/flowaudit --to /mnt/archive --until 2026-11-01

Flags:
`

// move is a command over stores.
type move struct {
	verb, from, to string
	until          time.Time
	at             place // how to get into a ClickHouse
}

func runStore(args []string, stdout, stderr io.Writer) int {
	m, err := parseMove(args, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "flowaudit-collector store: %v\nSee flowaudit-collector store --help.\n", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := m.run(ctx, slog.New(slog.NewTextHandler(stderr, nil))); err != nil {
		fmt.Fprintf(stderr, "flowaudit-collector store: %v\n", err)
		return 1
	}
	return 0
}

func parseMove(args []string, stdout io.Writer) (m move, err error) {
	fs := pflag.NewFlagSet("flowaudit-collector store", pflag.ContinueOnError)
	fs.Usage = func() { fmt.Fprint(stdout, storeUsage, fs.FlagUsages()) }
	fs.SetOutput(stdout)
	var until string
	fs.StringVar(&m.from, "from", "", "`place` to read")
	fs.StringVar(&m.to, "to", "", "`place` to write, or to compare with")
	m.at.flags(fs)
	fs.StringVar(&until, "until", "", "`date` before which days are moved (default: today in UTC)")
	if err := fs.Parse(args); err != nil {
		return m, err
	}
	if fs.NArg() != 1 || !strings.Contains(" copy export import verify ", " "+fs.Arg(0)+" ") {
		return m, errors.New("want one of copy, export, import and verify")
	}
	m.verb, m.until = fs.Arg(0), time.Now()
	m.at.credentials.Password = os.Getenv("FLOWAUDIT_STORE_PASSWORD")
	if until != "" {
		if m.until, err = time.Parse(time.DateOnly, until); err != nil {
			return m, fmt.Errorf("--until %q: want a date such as 2026-11-01", until)
		}
	}
	if m.from == "" || m.to == "" {
		return m, errors.New("--from and --to are needed")
	}
	fromFolder, toFolder := isFolder(m.from), isFolder(m.to)
	if want := m.verb == "import"; m.verb != "verify" && fromFolder != want {
		return m, fmt.Errorf("--from %s: %s reads a %s", m.from, m.verb, placeName(want))
	}
	if want := m.verb == "export"; m.verb != "verify" && toFolder != want {
		return m, fmt.Errorf("--to %s: %s writes a %s", m.to, m.verb, placeName(want))
	}
	return m, nil
}

func placeName(folder bool) string {
	if folder {
		return "directory of Parquet files"
	}
	return "store, duckdb:DIRECTORY or clickhouse://…"
}

func isFolder(place string) bool {
	return !strings.HasPrefix(place, "duckdb:") && !strings.Contains(place, "://")
}

func folder(place string) archive.Folder {
	return archive.Folder{Dir: strings.TrimPrefix(place, "parquet:")}
}

func (m *move) open(ctx context.Context, at string, log *slog.Logger) (store.Store, error) {
	p := m.at
	p.url = at
	if dir, is := strings.CutPrefix(at, "duckdb:"); is {
		p = place{db: duckdb.Options{Dir: dir}}
	}
	if err := p.validate(); err != nil {
		return nil, err
	}
	return p.open(ctx, log)
}

// run moves, and verifies what was moved.
func (m *move) run(ctx context.Context, log *slog.Logger) (err error) {
	stores := make(map[string]store.Store)
	defer func() {
		for _, s := range stores {
			err = errors.Join(err, s.Close())
		}
	}()
	for _, at := range []string{m.from, m.to} {
		if isFolder(at) {
			continue
		}
		if stores[at], err = m.open(ctx, at, log); err != nil {
			delete(stores, at)
			return err
		}
	}
	days, err := m.days(ctx, stores)
	if err != nil {
		return err
	}
	switch m.verb {
	case "copy":
		err = archive.Copy(ctx, stores[m.from], stores[m.to], days, log)
	case "export":
		err = folder(m.to).Export(ctx, stores[m.from], days, log)
	case "import":
		err = folder(m.from).Import(ctx, stores[m.to], log)
	}
	if err != nil {
		return err
	}
	if err := archive.Verify(ctx, m.source(m.from, stores), m.source(m.to, stores), days); err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	log.Info("both sides hold the same", "days", len(days))
	return nil
}

func (m *move) source(at string, stores map[string]store.Store) archive.Source {
	if s := stores[at]; s != nil {
		return s
	}
	return folder(at)
}

// days are those of the side that is read.
func (m *move) days(ctx context.Context, stores map[string]store.Store) ([]time.Time, error) {
	if s := stores[m.from]; s != nil {
		return archive.Days(ctx, s, m.until)
	}
	return folder(m.from).Days()
}
