package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/flowaudit/flowaudit/flow"
)

// source feeds observations until its context ends.
type source interface {
	Name() string
	Run(ctx context.Context) error
	Malformed() uint64
}

// opener opens a source in the namespace that the agent runs in.
type opener struct {
	name string
	open func() (source, error)
}

// sources keeps every source open: one that cannot be opened, or ends, is
// tried again, and the time without it is told as a gap.
type sources struct {
	openers []opener
	lost    func(flow.Gap)
	log     *slog.Logger

	mu        sync.Mutex
	open      map[string]source
	malformed map[string]uint64 // of sources that were closed since
}

const reopenInterval = 10 * time.Second

func newSources(openers []opener, lost func(flow.Gap), log *slog.Logger) *sources {
	return &sources{openers: openers, lost: lost, log: log, open: make(map[string]source), malformed: make(map[string]uint64)}
}

// start opens all sources. It fails only if none opens: the others' work goes on.
func (s *sources) start() (failed map[string]error, err error) {
	if len(s.openers) == 0 {
		return nil, errors.New("nothing to read: auto found no source, and --conntrack is off")
	}
	failed = make(map[string]error)
	var all []error
	for _, o := range s.openers {
		src, err := o.open()
		if err != nil {
			failed[o.name] = err
			all = append(all, err)
			continue
		}
		s.put(o.name, src)
	}
	if len(s.open) == 0 {
		return nil, errors.Join(all...)
	}
	return failed, nil
}

// run reads all sources until ctx ends.
func (s *sources) run(ctx context.Context, failed map[string]error) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, o := range s.openers {
		group.Go(func() error {
			s.keep(ctx, o, failed[o.name])
			return nil
		})
	}
	return group.Wait()
}

// keep runs one source, and opens it again whenever it fails.
func (s *sources) keep(ctx context.Context, o opener, err error) {
	since := time.Now()
	for {
		if err == nil {
			err = s.get(o.name).Run(ctx)
			s.drop(o.name)
			since = time.Now()
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errors.New("ended")
		}
		s.log.Error("source is not read, trying again", "source", o.name, "error", err, "every", reopenInterval)
		for err != nil {
			select {
			case <-time.After(reopenInterval):
			case <-ctx.Done():
				s.gap(o.name, since, err)
				return
			}
			why := err
			var src source
			if src, err = o.open(); err == nil {
				s.put(o.name, src)
				s.log.Info("source is read again", "source", o.name)
			}
			s.gap(o.name, since, why)
			since = time.Now()
		}
	}
}

func (s *sources) gap(name string, since time.Time, err error) {
	s.lost(flow.Gap{Source: name, Kind: flow.GapSource, Start: since, End: time.Now(), Detail: err.Error()})
}

func (s *sources) get(name string) source {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[name]
}

func (s *sources) put(name string, src source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[name] = src
}

func (s *sources) drop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.malformed[name] += s.open[name].Malformed()
	delete(s.open, name)
}

// names lists the open sources.
func (s *sources) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for name := range s.open {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// malformedBySource counts messages that could not be decoded.
func (s *sources) malformedBySource() map[string]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]uint64, len(s.openers))
	for name, n := range s.malformed {
		out[name] = n
	}
	for name, src := range s.open {
		out[name] += src.Malformed()
	}
	return out
}
