package notify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/flowaudit/flowaudit/collector/alert"
)

// recorder is a sender that notes what it is told.
type recorder struct {
	mu    sync.Mutex
	err   error
	hang  bool
	told  []string
	tries int
}

func (*recorder) Batch() int { return 4 }

func (r *recorder) Send(ctx context.Context, alerts []alert.Alert) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tries++
	if r.hang {
		<-ctx.Done()
		return ctx.Err()
	}
	if r.err != nil {
		return r.err
	}
	for _, a := range alerts {
		r.told = append(r.told, a.ID+" "+string(a.State))
	}
	return nil
}

func (r *recorder) set(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = err
}

func (r *recorder) got() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.told)
}

func target(name string, s Sender) *Target {
	return &Target{Name: name, Type: "test", resolved: true, giveUp: defaultGiveUp, sender: s}
}

func firing(id string) alert.Alert {
	a := *alert.Sample()
	a.ID = id
	return a
}

func resolvedOf(a alert.Alert) alert.Alert {
	a.State, a.Ended = alert.Resolved, a.Started.Add(time.Hour)
	return a
}

// dispatching runs f with a dispatcher that runs, inside a bubble.
func dispatching(t *testing.T, dir string, targets []*Target, f func(d *Dispatcher)) {
	t.Helper()
	d := New(Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if problems := d.Configure(targets); len(problems) > 0 {
		t.Fatal(problems)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.Run(ctx)
	}()
	f(d)
	stop()
	<-done
}

func TestWhoIsAwayIsToldLater(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		away, here, hangs := &recorder{err: errors.New("connection refused")}, &recorder{}, &recorder{hang: true}
		var delivered []string
		targets := []*Target{target("away", away), target("here", here), target("hangs", hangs)}
		dispatching(t, dir, targets, func(d *Dispatcher) {
			d.o.Delivered = func(a *alert.Alert, notifier string) { delivered = append(delivered, notifier) }
			for i := range 5 {
				a := firing(fmt.Sprint(i))
				d.Notify(a, d.Wanted(&a))
			}
			time.Sleep(time.Minute)
			if got := here.got(); len(got) != 5 {
				t.Errorf("%q were told, want five", got)
			}
			stats := d.Stats()
			if s := stats[0]; s.Notifier != "away" || s.Queued != 5 || s.Failed < 4 || s.Failed > 12 || s.Sent != 0 || !strings.Contains(s.Problem(), "connection refused; 5 wait since") {
				t.Errorf("%+v %s", s, s.Problem())
			}
			if s := stats[1]; s.Queued != 5 || s.Notifier != "hangs" {
				t.Errorf("%+v", s)
			}
		})
		// After a restart.
		away.set(nil)
		dispatching(t, dir, targets[:1], func(d *Dispatcher) {
			time.Sleep(time.Second)
			if got := fmt.Sprint(away.got()); got != "[0 firing 1 firing 2 firing 3 firing 4 firing]" {
				t.Errorf("told %s", got)
			}
			if s := d.Stats()[0]; s.Queued != 0 || s.Sent != 5 {
				t.Errorf("%+v", s)
			}
		})
		if files, _ := filepath.Glob(filepath.Join(dir, "away", "*")); len(files) != 0 {
			t.Errorf("%q are left", files)
		}
		if len(delivered) != 5 {
			t.Errorf("delivered to %q", delivered)
		}
	})
}

func TestWhatIsGivenUpIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{err: refusedError{errors.New("400 Bad Request")}}
		dispatching(t, t.TempDir(), []*Target{target("x", r)}, func(d *Dispatcher) {
			d.Notify(firing("a"), []string{"x"})
			time.Sleep(time.Second)
			if s := d.Stats()[0]; s.GivenUp != 1 || s.Queued != 0 {
				t.Errorf("refused: %+v", s)
			}
			r.set(errors.New("503"))
			d.Notify(firing("b"), []string{"x"})
			time.Sleep(25 * time.Hour)
			if s := d.Stats()[0]; s.GivenUp != 2 || s.Queued != 0 || s.Failed > 2000 {
				t.Errorf("after a day: %+v", s)
			}
			for i := range maxQueued + 3 {
				d.Notify(firing(fmt.Sprint("many", i)), []string{"x"})
			}
			if s := d.Stats()[0]; s.GivenUp != 5 || s.Queued != maxQueued {
				t.Errorf("too many: %+v", s)
			}
		})
	})
}

func TestOneAlertsStatesAreToldInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{}
		dispatching(t, t.TempDir(), []*Target{target("x", r)}, func(d *Dispatcher) {
			a := firing("a")
			d.Notify(a, []string{"x"})
			d.Notify(a, []string{"x"}) // a second time, by another collector's record
			d.Notify(resolvedOf(a), []string{"x"})
			d.Notify(firing("b"), []string{"x", "gone"})
			time.Sleep(time.Second)
			got := r.got()
			if fires, over := slices.Index(got, "a firing"), slices.Index(got, "a resolved"); len(got) != 3 || fires < 0 || over < fires {
				t.Errorf("told %q", got)
			}
		})
	})
}

func TestTargetsChooseAlerts(t *testing.T) {
	d := New(Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	only := target("only", &recorder{})
	only.match, only.resolved = []alert.Matcher{{Label: "severity", Op: "=", Value: "critical"}}, false
	d.Configure([]*Target{only, target("all", &recorder{})})
	a := firing("a")
	if got := fmt.Sprint(d.Wanted(&a)); got != "[all]" {
		t.Errorf("a warning is for %s", got)
	}
	a.Labels = map[string]string{"severity": "critical"}
	if got := fmt.Sprint(d.Wanted(&a)); got != "[all only]" {
		t.Errorf("a critical one is for %s", got)
	}
	a.State = alert.Resolved
	if got := fmt.Sprint(d.Wanted(&a)); got != "[all]" {
		t.Errorf("a resolved one is for %s", got)
	}
}

func TestABrokenNotificationIsSetAside(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	broken := filepath.Join(dir, "x", "00000000000000000007.json")
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := New(Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	d.Configure([]*Target{target("x", &recorder{})})
	if s := d.Stats()[0]; s.GivenUp != 1 || s.Queued != 0 {
		t.Errorf("%+v", s)
	}
	if _, err := os.Stat(broken + ".broken"); err != nil {
		t.Error(err)
	}
}

// What cannot be used of the notifiers is named, and the others are there.
func TestBadNotifiersAreNamed(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"{type: pigeon}":                  `"pigeon" is not one of alertmanager`,
		"{type: webhook}":                 "want one of url and url_file",
		"{type: webhook, url: 'ftp://x'}": "want one that begins with http://",
		"{type: webhook, url: 'http://x', template: '{{.Nothing}}'}":   "can't evaluate field Nothing",
		"{type: webhook, url: 'http://x', template: '{{'}":             "unclosed action",
		"{type: webhook, url: 'http://x', format: fax}":                `format: "fax"`,
		"{type: webhook, url: 'http://x', format: pagerduty}":          "routing_key_file",
		"{type: webhook, url: 'http://x', secret_file: /nothing}":      "no such file",
		"{type: webhook, url: 'http://x', secret_file: " + empty + "}": "is empty",
		"{type: webhook, url_file: " + empty + "}":                     "is empty",
		"{type: webhook, url: 'http://x', facility: mail}":             "has no field facility",
		"{type: webhook, url: 'http://x', color: red}":                 `there is no field "color"`,
		"{type: webhook, url: 'http://x', ca_file: " + empty + "}":     "holds no certificate",
		"{type: webhook, url: 'http://x', cert_file: a}":               "belong together",
		"{type: webhook, url: 'http://x', name: ../up}":                "is no name",
		"{type: webhook, url: 'http://x', match: [x]}":                 "parse matcher",
		"{type: syslog, url: 'udp://x', facility: mine}":               `facility: "mine"`,
		"{type: syslog, url: 'http://x'}":                              "udp:// or tcp:// or tls://",
		"{type: otlp, url: 'http://x', timeout: soon}":                 "is no duration",
		"{type: events}":                        "need an API server",
		"{type: alertmanager, url: 'http://x'}": "",
	} {
		c := alert.Parse([]byte("notifiers:\n- " + text + "\n- {type: webhook, name: good, url: 'http://good'}\n"))
		targets, problems := Parse(c.Notifiers, Options{})
		switch {
		case want == "" && (len(problems) > 0 || len(targets) != 2):
			t.Errorf("%s: %v", text, problems)
		case want != "" && (len(problems) != 1 || problems[0].Line != 2 || !strings.Contains(problems[0].Text, want)):
			t.Errorf("%s: %v, want %q", text, problems, want)
		case want != "" && (len(targets) != 1 || targets[0].Name != "good"):
			t.Errorf("%s: the good one is missing", text)
		}
	}
	nodes := []*yaml.Node{}
	c := alert.Parse([]byte("notifiers: [{type: otlp, url: 'http://x'}, {type: otlp, url: 'http://y'}]"))
	nodes = append(nodes, c.Notifiers...)
	if _, problems := Parse(nodes, Options{}); len(problems) != 1 || !strings.Contains(problems[0].Text, "another notifier of this name") {
		t.Errorf("%v", problems)
	}
}
