package monitor_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/flowaudit/flowaudit/monitor"
)

// serve starts a server on free ports of loopback.
func serve(t *testing.T, s monitor.Subject) (metrics, profiles string) {
	t.Helper()
	server, err := monitor.Listen(monitor.Options{Metrics: "127.0.0.1:0", Profiles: "localhost:0"}, s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("the server ended with %v", err)
		}
	})
	a := server.Addresses()
	return "http://" + a[0].String(), "http://" + a[1].String()
}

func get(t *testing.T, url string) (code int, body string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestHealthAndReadinessNameWhatIsWrong(t *testing.T) {
	var alive, reached error
	metrics, _ := serve(t, monitor.Subject{
		Metrics: monitor.NewRegistry("p", "1"), Alive: func() error { return alive },
		Ready: []monitor.Check{{"sources", func() error { return nil }}, {"collector", func() error { return reached }}},
	})
	for _, test := range []struct {
		alive, reached error
		path, want     string
		code           int
	}{
		{nil, nil, "/healthz", "alive: ok\n", 200},
		{errors.New("stuck"), nil, "/healthz", "alive: stuck\n", 503},
		{nil, nil, "/readyz", "sources: ok\ncollector: ok\n", 200},
		{errors.New("stuck"), errors.New("away"), "/readyz", "sources: ok\ncollector: away\n", 503},
	} {
		alive, reached = test.alive, test.reached
		if code, body := get(t, metrics+test.path); code != test.code || body != test.want {
			t.Errorf("%s: %d %q; want %d %q", test.path, code, body, test.code, test.want)
		}
	}
}

func TestAProcessThatSaysNothingOfItsHealthIsAlive(t *testing.T) {
	metrics, _ := serve(t, monitor.Subject{Metrics: monitor.NewRegistry("p", "1")})
	if code, _ := get(t, metrics+"/healthz"); code != 200 {
		t.Errorf("code %d", code)
	}
}

// TestProfilesAndMetricsAreApart: who may scrape may not read memory.
func TestProfilesAndMetricsAreApart(t *testing.T) {
	metrics, profiles := serve(t, monitor.Subject{Metrics: monitor.NewRegistry("flowaudit-agent", "1.2.3")})
	if code, body := get(t, metrics+"/metrics"); code != 200 || !strings.Contains(body, `flowaudit_build_info{program="flowaudit-agent",version="1.2.3"} 1`) {
		t.Errorf("%d %.200s", code, body)
	}
	if code, body := get(t, profiles+"/debug/pprof/heap?debug=1"); code != 200 || !strings.Contains(body, "heap profile") {
		t.Errorf("%d %.200s", code, body)
	}
	if code, _ := get(t, metrics+"/debug/pprof/"); code != 404 {
		t.Errorf("profiles at the metrics' address: %d", code)
	}
	if code, _ := get(t, profiles+"/metrics"); code != 404 {
		t.Errorf("metrics at the profiles' address: %d", code)
	}
}

func TestAddressesThatCannotBeServed(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, o := range []monitor.Options{{Metrics: taken.Addr().String()}, {Metrics: "127.0.0.1:0", Profiles: taken.Addr().String()}} {
		if _, err := monitor.Listen(o, monitor.Subject{Metrics: monitor.NewRegistry("p", "1")}, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Errorf("%+v: %v", o, err)
		}
	}
	for _, test := range []struct{ args, want string }{
		{"--listen-metrics 9464", "--listen-metrics: "},
		{"--listen-pprof :6060", "--listen-pprof: profiles show what is in memory"},
		{"--listen-pprof 10.0.0.1:6060", "--listen-pprof: profiles show"},
		{"--listen-pprof 6060", "--listen-pprof: "},
		{"--listen-pprof [::1]:6060 --listen-metrics :9464", ""},
		{"--listen-pprof localhost:6060", ""},
		{"--log-level loud", `--log-level "loud": want debug, info, warn or error`},
		{"--log-format xml", `--log-format "xml": want text or json`},
		{"", ""},
	} {
		var o monitor.Options
		fs := pflag.NewFlagSet("", pflag.ContinueOnError)
		o.Flags(fs)
		if err := fs.Parse(strings.Fields(test.args)); err != nil {
			t.Fatal(err)
		}
		err := o.Validate()
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.HasPrefix(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", test.args, err, test.want)
		}
	}
}

func TestLogLevelsAndFormats(t *testing.T) {
	for _, test := range []struct {
		level, format, want string
	}{
		{"", "", "level=INFO msg=told n=1\nlevel=WARN msg=warned\n"},
		{"debug", "text", "level=DEBUG msg=whispered\nlevel=INFO msg=told n=1\nlevel=WARN msg=warned\n"},
		{"WARN", "JSON", `{"level":"WARN","msg":"warned"}` + "\n"},
		{"error", "json", ""},
	} {
		var out strings.Builder
		log, err := (&monitor.Options{LogLevel: test.level, LogFormat: test.format}).Logger(&out)
		if err != nil {
			t.Fatal(err)
		}
		log.Debug("whispered")
		log.Info("told", "n", 1)
		log.Warn("warned")
		if got := withoutTime(out.String()); got != test.want {
			t.Errorf("%s, %s: %q, want %q", test.level, test.format, got, test.want)
		}
	}
}

// withoutTime removes what differs from run to run.
func withoutTime(log string) string {
	var out strings.Builder
	for line := range strings.Lines(log) {
		if rest, is := strings.CutPrefix(line, "time="); is {
			_, line, _ = strings.Cut(rest, " ")
		} else if _, rest, is := strings.Cut(line, `,"level"`); is {
			line = `{"level"` + rest
		}
		out.WriteString(line)
	}
	return out.String()
}
