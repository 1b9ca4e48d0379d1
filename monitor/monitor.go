package monitor

import (
	"errors"
	"fmt"
	"io"
	"net"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/spf13/pflag"
)

// Options say where and how a process tells about itself. The zero value logs
// text from info on, and serves nothing.
type Options struct {
	Metrics   string // host:port of /metrics, /healthz and /readyz
	Profiles  string // loopback host:port of /debug/pprof/
	LogLevel  string // debug, info, warn or error
	LogFormat string // text or json
}

// Flags adds the options to a command line.
func (o *Options) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&o.Metrics, "listen-metrics", "", "`address` of /metrics for Prometheus, and of /healthz and /readyz, host:port without TLS; they name workloads and nodes, never pods or addresses")
	fs.StringVar(&o.Profiles, "listen-pprof", "", "`address` of Go's profiles at /debug/pprof/, host:port on loopback")
	fs.StringVar(&o.LogLevel, "log-level", "info", "the `least` that is logged: debug, info, warn or error")
	fs.StringVar(&o.LogFormat, "log-format", "text", "`how` it is logged: text, as key=value, or json")
}

// Validate names the first option that cannot work.
func (o *Options) Validate() error {
	if _, err := o.Logger(io.Discard); err != nil {
		return err
	}
	if o.Metrics != "" {
		if _, _, err := net.SplitHostPort(o.Metrics); err != nil {
			return fmt.Errorf("--listen-metrics: %w: want host:port", err)
		}
	}
	if o.Profiles == "" {
		return nil
	}
	host, _, err := net.SplitHostPort(o.Profiles)
	if err != nil {
		return fmt.Errorf("--listen-pprof: %w: want host:port", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return errors.New("--listen-pprof: profiles show what is in memory: want an address of loopback, such as 127.0.0.1:6060")
	}
	return nil
}

// NewRegistry makes a registry that says already which version of a program
// runs, and what the process and the Go runtime use.
func NewRegistry(program, version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	build := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "flowaudit_build_info", Help: "The program and its version, with the value 1.",
		ConstLabels: prometheus.Labels{"program": program, "version": version},
	}, func() float64 { return 1 })
	r.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Check is a condition of being ready.
type Check struct {
	Name string
	// Fault is why it is not met; nil if it is.
	Fault func() error
}

// Subject is what is told.
type Subject struct {
	Metrics prometheus.Gatherer
	// Alive says why the process should be started again; nil is never.
	Alive func() error
	Ready []Check
}
