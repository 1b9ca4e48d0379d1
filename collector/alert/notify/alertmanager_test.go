package notify

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flowaudit/flowaudit/collector/alert"
)

// program is Alertmanager: Debian's package has it, which "make test" installs.
func program(t *testing.T) string {
	t.Helper()
	for _, name := range []string{"prometheus-alertmanager", "alertmanager"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("CI") != "" {
		t.Fatal("prometheus-alertmanager is not installed")
	}
	t.Skip("prometheus-alertmanager is not installed: make need-alertmanager")
	return ""
}

// manager is a real Alertmanager that tells a webhook.
type manager struct {
	t       *testing.T
	address string
	dir     string
	stop    func()
	// told is what its receivers are told: status, number of alerts, and the first one's labels.
	told chan managerMessage
}

type managerMessage struct {
	Status string
	Alerts []struct {
		Status              string
		Labels, Annotations map[string]string
		StartsAt, EndsAt    time.Time
		GeneratorURL        string
	}
	GroupLabels map[string]string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	program(t)
	m := &manager{t: t, dir: t.TempDir(), told: make(chan managerMessage, 100)}
	hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var message managerMessage
		if err := json.NewDecoder(r.Body).Decode(&message); err != nil {
			t.Error(err)
		}
		m.told <- message
	}))
	t.Cleanup(hook.Close)
	config := fmt.Sprintf(`
route: {receiver: test, group_by: [alertname, source], group_wait: 1s, group_interval: 1s, repeat_interval: 1h}
receivers: [{name: test, webhook_configs: [{url: '%s', send_resolved: true}]}]
`, hook.URL)
	if err := os.WriteFile(filepath.Join(m.dir, "config.yml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.address = l.Addr().String()
	l.Close()
	return m
}

// start begins Alertmanager at the address that it always has.
func (m *manager) start() {
	m.t.Helper()
	output, err := os.Create(filepath.Join(m.dir, "log"))
	if err != nil {
		m.t.Fatal(err)
	}
	cmd := exec.Command(program(m.t), "--config.file", filepath.Join(m.dir, "config.yml"), "--storage.path", filepath.Join(m.dir, "data"),
		"--web.listen-address", m.address, "--cluster.listen-address=")
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.stop = func() {
		_ = cmd.Process.Kill() // it may have ended
		_ = cmd.Wait()
		output.Close()
		m.stop = func() {}
	}
	m.t.Cleanup(func() { m.stop() })
	await(m.t, "Alertmanager is ready", func() bool {
		r, err := http.Get("http://" + m.address + "/-/ready")
		if err != nil {
			return false
		}
		defer r.Body.Close()
		_, _ = io.Copy(io.Discard, r.Body)
		return r.StatusCode == http.StatusOK
	})
}

// await waits for a condition, for as long as a slow machine may need.
func await(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("waited in vain until %s", what)
}

func (m *manager) receive(what string) managerMessage {
	m.t.Helper()
	select {
	case got := <-m.told:
		return got
	case <-time.After(90 * time.Second):
		text, _ := os.ReadFile(filepath.Join(m.dir, "log"))
		m.t.Fatalf("waited in vain for %s; Alertmanager says:\n%s", what, text)
		return managerMessage{}
	}
}

// An alert reaches the receivers, in its group, and resolves; one that fired
// while Alertmanager was dead is told when it is back.
func TestRealAlertmanager(t *testing.T) {
	m := newManager(t)
	target, err := Alertmanager("http://"+m.address, Options{})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	d := New(Options{Dir: dir, Log: slog.New(slog.DiscardHandler)})
	if problems := d.Configure([]*Target{target}); len(problems) > 0 {
		t.Fatal(problems)
	}
	go d.Run(t.Context())

	now := time.Now().Truncate(time.Second)
	alertTo := func(to string) alert.Alert {
		a := *alert.Sample()
		a.ID, a.Started, a.Since, a.Last, a.Link = "id-"+to, now, now, now, "https://g.example/x"
		a.Labels = map[string]string{"alertname": "first-denied", "severity": "warning", "source": "shop/web", "destination": to}
		return a
	}
	first, second := alertTo("shop/db"), alertTo("shop/api")
	d.Notify(first, []string{target.Name})
	d.Notify(second, []string{target.Name})
	await(t, "both wait", func() bool { s := d.Stats()[0]; return s.Queued == 2 && s.Failed > 0 && s.Error != "" })

	m.start()
	got := m.receive("the group")
	if got.Status != "firing" || got.GroupLabels["source"] != "shop/web" {
		t.Errorf("%+v", got)
	}
	for len(got.Alerts) < 2 { // the second may come a second later
		got = m.receive("both alerts in one group")
	}
	a := got.Alerts[0]
	if a.Annotations["command"] == "" || a.Annotations["explanation"] == "" || a.Annotations["nearest_miss"] == "" || a.GeneratorURL != "https://g.example/x" || !a.StartsAt.Equal(now) {
		t.Errorf("%+v", a)
	}
	// Alertmanager may tell its receivers before it has answered.
	await(t, "both count as sent", func() bool { s := d.Stats()[0]; return s.Queued == 0 && s.Sent == 2 && s.GivenUp == 0 })

	over := first
	over.State, over.Ended = alert.Resolved, time.Now()
	target.sender.(*alertmanager).forget() // its group_wait is a second, not half a minute
	d.Notify(over, []string{target.Name})
	d.Refresh([]alert.Alert{second})
	for {
		got = m.receive("the resolution")
		n := 0
		for _, a := range got.Alerts {
			if a.Status == "resolved" {
				n++
			}
		}
		if n == 1 && strings.Contains(fmt.Sprint(got.Alerts), "shop/db") {
			break
		}
	}
}

// forget forgets when alerts were told.
func (m *alertmanager) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.told)
}

// Alertmanager tells nobody of an alert that is over before its group_wait: so
// the end of one that was told late is told later still.
func TestAResolutionIsHeldBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &alertmanager{told: make(map[string]time.Time)}
		a := firing("a")
		over := resolvedOf(a)
		if !m.Hold(&over).IsZero() {
			t.Error("held back, though nobody was told that it fires")
		}
		m.told["a"] = time.Now()
		if !m.Hold(&a).IsZero() || time.Until(m.Hold(&over)) != settle {
			t.Errorf("held back until %s", m.Hold(&over))
		}
	})
}

func TestTheTimesOfAnAlert(t *testing.T) {
	now := time.Now()
	a := firing("a")
	if p := postableOf(&a, now); !p.Ends.Equal(now.Add(stays)) || !p.Starts.Equal(a.Started) {
		t.Errorf("%+v", p)
	}
	over := resolvedOf(a)
	if p := postableOf(&over, now); !p.Ends.Equal(over.Ended) {
		t.Errorf("%+v", p)
	}
}
