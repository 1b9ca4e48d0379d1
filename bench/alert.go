package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const alertmanagerAddr = "127.0.0.1:9093" // in the node's namespace

// benchAlert measures how long it takes from a packet that is refused until
// Alertmanager has the alert – agent, collector and Alertmanager are the real
// ones – and how long rules take to be tried on a month.
func benchAlert(ctx context.Context, _ options) (all []result, err error) {
	program, err := exec.LookPath("prometheus-alertmanager")
	if err != nil {
		return nil, fmt.Errorf("find Alertmanager: %w: apt-get install prometheus-alertmanager", err)
	}
	l, err := newLab("table inet cni {\n chain pods { type filter hook forward priority 0; ip daddr 10.9.0.2 log group 100\n ip daddr 10.9.0.2 drop\n }\n}")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if err := l.startAlerting(ctx, program); err != nil {
		return nil, err
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: l.dial}}
	if err := wait(ctx, func() (bool, error) { _, err := alertSources(ctx, client); return err == nil, nil }); err != nil {
		return nil, err
	}
	time.Sleep(2 * time.Second) // until the agent's socket is open
	var took []time.Duration
	for n := range 5 {
		source := netip.AddrFrom4([4]byte{10, 200, 0, byte(1 + n)})
		began := time.Now()
		if err := l.refuse(source); err != nil {
			return nil, err
		}
		if err := wait(ctx, func() (bool, error) {
			sources, err := alertSources(ctx, client)
			return slices.Contains(sources, source.String()), err
		}); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	tried, err := units(ctx, "^BenchmarkTestRules$", "./collector")
	if err != nil {
		return nil, err
	}
	for _, u := range tried {
		all = append(all, result{"flowaudit alerts test over 30 days", "flowaudit", []string{
			duration(u.figures["ns/op"]), fmt.Sprintf("%.0f edges, %.1f million edge-hours", u.figures["edges"], u.figures["edge-hours"]/1e6),
		}})
	}
	return append(all, result{"a refused packet to an alert in Alertmanager", "flowaudit", []string{
		fmt.Sprintf("%.1f s (median of %d; longest %.1f)", took[len(took)/2].Seconds(), len(took), took[len(took)-1].Seconds()),
	}}), nil
}

// startAlerting starts Alertmanager, the collector and the agent.
func (l *lab) startAlerting(ctx context.Context, alertmanager string) error {
	config := filepath.Join(l.dir, "alertmanager.yml")
	if err := os.WriteFile(config, []byte("route: {receiver: none}\nreceivers: [{name: none}]\n"), 0o600); err != nil {
		return fmt.Errorf("write Alertmanager's configuration: %w", err)
	}
	socket := "unix:" + filepath.Join(l.dir, "c.sock")
	for _, args := range [][]string{
		{alertmanager, "--config.file", config, "--storage.path", filepath.Join(l.dir, "alertmanager"), "--web.listen-address", alertmanagerAddr, "--cluster.listen-address="},
		{"bin/flowaudit-collector", "--listen", socket, "--data", filepath.Join(l.dir, "data"), "--alertmanager", "http://" + alertmanagerAddr},
		{"bin/flowaudit-agent", "--collector", socket, "--node-name", "n1", "--nflog-group", "100=denied", "--conntrack=false", "--state-dir", filepath.Join(l.dir, "state")},
	} {
		if _, err := start(ctx, l.node.Namespace, args[0], args[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// dial reaches Alertmanager from outside of its namespace.
func (l *lab) dial(ctx context.Context, network, addr string) (c net.Conn, err error) {
	err = l.node.Do(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, addr)
		return err
	})
	return c, err
}

// refuse sends one packet that is refused.
func (l *lab) refuse(source netip.Addr) error {
	return l.pod.Do(func() error {
		r, err := newRawUDP(target())
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(r.fd) }() // nothing is buffered
		return r.send(source, 1024, 5432)
	})
}

// wait asks ten times a second until something holds, a minute at most.
func wait(ctx context.Context, holds func() (bool, error)) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if ok, err := holds(); ok || err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return errors.New("nothing came within a minute")
}

// alertSources are the sources of the alerts that Alertmanager has.
func alertSources(ctx context.Context, client *http.Client) (all []string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+alertmanagerAddr+"/api/v2/alerts", nil)
	if err != nil {
		return nil, err
	}
	r, err := client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask Alertmanager: %w", err)
	}
	defer r.Body.Close()
	var alerts []struct{ Labels map[string]string }
	if err := json.NewDecoder(r.Body).Decode(&alerts); err != nil {
		return nil, fmt.Errorf("read Alertmanager's answer: %w", err)
	}
	for _, a := range alerts {
		all = append(all, a.Labels["source"])
	}
	return all, nil
}
