package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

// Server serves a subject at the addresses of its options.
type Server struct {
	listeners []served
	log       *slog.Logger
}

type served struct {
	*http.Server
	listener net.Listener
}

// maxScrapes bounds how many scrapes are answered at once, and scrapeTime how
// long one may take.
const (
	maxScrapes = 4
	scrapeTime = 10 * time.Second
)

// Listen takes the addresses, so that one that is in use is told at once.
func Listen(o Options, s Subject, log *slog.Logger) (*Server, error) {
	server := &Server{log: log}
	if o.Metrics != "" {
		if err := server.listen("metrics", o.Metrics, s.handler()); err != nil {
			return nil, err
		}
	}
	if o.Profiles != "" {
		if err := server.listen("profiles", o.Profiles, profiles()); err != nil {
			return nil, errors.Join(err, server.Close())
		}
	}
	return server, nil
}

func (s *Server) listen(what, address string, h http.Handler) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("serve %s: %w", what, err)
	}
	s.listeners = append(s.listeners, served{&http.Server{Handler: h, ReadHeaderTimeout: scrapeTime}, l})
	s.log.Info("serves "+what+" over HTTP", "address", l.Addr().String())
	return nil
}

// Addresses are where the server listens: of the metrics, then of the profiles.
func (s *Server) Addresses() []net.Addr {
	var out []net.Addr
	for _, l := range s.listeners {
		out = append(out, l.listener.Addr())
	}
	return out
}

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range s.listeners {
		group.Go(func() error {
			if err := l.Serve(l.listener); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve HTTP at %s: %w", l.listener.Addr(), err)
			}
			return nil
		})
	}
	group.Go(func() error {
		<-ctx.Done()
		return s.Close()
	})
	return group.Wait()
}

// Close gives the addresses back.
func (s *Server) Close() error {
	var errs []error
	for _, l := range s.listeners {
		errs = append(errs, l.Server.Close())
		if err := l.listener.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s Subject) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Metrics, promhttp.HandlerOpts{
		MaxRequestsInFlight: maxScrapes, Timeout: scrapeTime, ErrorHandling: promhttp.ContinueOnError,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		alive := Check{Name: "alive", Fault: s.Alive}
		if s.Alive == nil {
			alive.Fault = func() error { return nil }
		}
		answer(w, []Check{alive})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) { answer(w, s.Ready) })
	return mux
}

// answer tells each check's outcome, a line each.
func answer(w http.ResponseWriter, checks []Check) {
	code := http.StatusOK
	var text strings.Builder
	for _, c := range checks {
		if err := c.Fault(); err != nil {
			code = http.StatusServiceUnavailable
			fmt.Fprintf(&text, "%s: %v\n", c.Name, err)
			continue
		}
		fmt.Fprintf(&text, "%s: ok\n", c.Name)
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	fmt.Fprint(w, text.String())
}

func profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}
