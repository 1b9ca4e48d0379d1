package kernel

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

	"github.com/flowaudit/flowaudit/flow"
	"github.com/flowaudit/flowaudit/test/netlab"
)

// roomForBursts prepares a node for connections from 10.200.0.0/16, which it
// forgets after a second.
func roomForBursts(t *testing.T, n *netlab.Node) {
	t.Helper()
	if err := n.IP("route", "add", "10.200.0.0/16", "dev", n.Pods[0].Veth); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/sys/net/netfilter/nf_conntrack_max", []byte("1048576"), 0); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
		if err := n.Sysctl("netfilter/"+s, "1"); err != nil {
			t.Fatal(err)
		}
	}
}

func oneInTenRefused(i int) uint16 {
	if i%10 == 0 {
		return 2001
	}
	return 1001
}

// TestTapDeniesNothingThatWasLost stops the agent while more connections begin
// and end than its sockets hold.
func TestTapDeniesNothingThatWasLost(t *testing.T) {
	n, s, a := newTapped(t, "tl")
	from, to := n.Pods[0], n.Pods[1]
	roomForBursts(t, n)
	serve(t, to, 1001)
	if err := a.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	const sent = 150_000
	burst(t, from, to.IPv4, 0, sent, oneInTenRefused)
	untilForgotten(t, n.Namespace)
	if err := a.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	overrun := func(all []flow.Batch) bool {
		return slices.ContainsFunc(all, func(b flow.Batch) bool {
			return slices.ContainsFunc(b.Gaps, func(g flow.Gap) bool { return g.Source == "conntrack" && g.Kind == flow.GapOverrun })
		})
	}
	s.until("the loss, and what is unknown by it", func(all []flow.Batch) bool {
		return overrun(all) && verdicts(all, 2001)[flow.VerdictUnknown] > 0
	})
	knock(t, from, "udp", hostPort(to.IPv4, 2099))
	s.until("a refusal after it", func(all []flow.Batch) bool { return len(rows(all, port(2099))) == 1 })
	a.stop()
	all := s.all()
	t.Logf("passed: %v, refused: %v", verdicts(all, 1001), verdicts(all, 2001))
	if denied := verdicts(all, 1001)[flow.VerdictDenied]; denied > 0 {
		t.Errorf("%d connections that passed are denied", denied)
	}
	if allowed := verdicts(all, 2001)[flow.VerdictAllowed]; allowed > 0 {
		t.Errorf("%d connections that were refused are allowed", allowed)
	}
	if r := rows(all, port(2099)); r[0].Verdict != flow.VerdictDenied {
		t.Errorf("a refusal after the loss: %v", r[0])
	}
}

// untilForgotten waits until a node's connection tracking is empty.
func untilForgotten(t *testing.T, n *netlab.Namespace) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		var left []conntrack.Flow
		if err := n.Do(func() error {
			c, err := conntrack.Dial(nil)
			if err != nil {
				return err
			}
			left, err = c.Dump(nil)
			return errors.Join(err, c.Close())
		}); err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are never forgotten", len(left))
		}
	}
}

// TestTapLoad lets 20,000 connections a second begin, a tenth of them refused.
// With FLOWAUDIT_SOAK it does so for the ten seconds that are promised.
func TestTapLoad(t *testing.T) {
	n, s, a := newTapped(t, "th")
	from, to := n.Pods[0], n.Pods[1]
	roomForBursts(t, n)
	serve(t, to, 1001)
	const rate, slice = 20_000, 200
	seconds := 2
	if os.Getenv("FLOWAUDIT_SOAK") != "" {
		seconds = 10
	}
	began := time.Now()
	for sent := 0; sent < rate*seconds; sent += slice {
		time.Sleep(time.Until(began.Add(time.Duration(sent) * time.Second / rate)))
		burst(t, from, to.IPv4, sent, slice, oneInTenRefused)
	}
	t.Logf("%d connections in %s", rate*seconds, time.Since(began).Round(time.Millisecond))
	want := uint64(rate * seconds)
	s.until("every connection", func(all []flow.Batch) bool {
		passed, refused := verdicts(all, 1001), verdicts(all, 2001)
		return passed[flow.VerdictAllowed]+passed[flow.VerdictUnknown] >= want/10*9 && refused[flow.VerdictDenied]+refused[flow.VerdictUnknown] >= want/10
	})
	a.stop()
	all := s.all()
	passed, refused := verdicts(all, 1001), verdicts(all, 2001)
	t.Logf("passed: %v, refused: %v\n%s", passed, refused, show(rows(all, func(f *flow.Flow) bool { return f.Verdict == flow.VerdictUnknown })))
	if passed[flow.VerdictDenied] > 0 {
		t.Errorf("%d connections that passed are denied", passed[flow.VerdictDenied])
	}
	if refused[flow.VerdictAllowed] > 0 || refused[flow.VerdictDenied]+refused[flow.VerdictUnknown] != want/10 {
		t.Errorf("refused connections: %v of %d", refused, want/10)
	}
	lost := slices.ContainsFunc(all, func(b flow.Batch) bool { return len(b.Gaps) > 0 })
	if unknown := refused[flow.VerdictUnknown] + passed[flow.VerdictUnknown]; unknown > 0 && !lost {
		t.Errorf("%d unknown, and no gap tells of a loss", unknown)
	}
}
