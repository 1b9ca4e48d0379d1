// Package netlab makes real network namespaces, joined by veth pairs, for tests, the demo and benchmarks.
package netlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"github.com/vishvananda/netns"
)

// Namespace is a network namespace with a name in /run/netns.
type Namespace struct {
	Name string
}

// prefix begins the name of every namespace; the maker's pid follows, so that
// what a killed program left can be told from what a running one uses.
const prefix = "falab"

// New makes a namespace with its loopback up. The caller closes it. Namespaces
// of programs that are gone are removed.
func New(label string) (*Namespace, error) {
	if err := Sweep(); err != nil {
		return nil, err
	}
	n := &Namespace{Name: fmt.Sprintf("%s-%d-%s", prefix, os.Getpid(), label)}
	if err := ip("netns", "add", n.Name); err != nil {
		return nil, err
	}
	if err := n.IP("link", "set", "lo", "up"); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Sweep removes namespaces whose maker does not run any more. New does it, too.
func Sweep() error {
	entries, err := os.ReadDir("/run/netns")
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list network namespaces: %w", err)
	}
	for _, e := range entries {
		rest, ours := strings.CutPrefix(e.Name(), prefix+"-")
		pid, _, _ := strings.Cut(rest, "-")
		if _, err := strconv.Atoi(pid); !ours || err != nil {
			continue
		}
		if _, err := os.Stat("/proc/" + pid); errors.Is(err, os.ErrNotExist) {
			// Another sweeper may be faster; that is no error.
			_ = ip("netns", "delete", e.Name())
		}
	}
	return nil
}

// Close removes the namespace and every interface in it.
func (n *Namespace) Close() error { return ip("netns", "delete", n.Name) }

// Do runs f on a thread inside the namespace. Sockets that f opens stay there.
func (n *Namespace) Do(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- n.enter(f) }()
	return <-done
}

// enter moves the goroutine's thread into the namespace and back. A thread
// that cannot go back stays locked, and so ends with its goroutine.
func (n *Namespace) enter(f func() error) error {
	runtime.LockOSThread()
	origin, err := netns.Get()
	if err != nil {
		return fmt.Errorf("get network namespace: %w", err)
	}
	defer origin.Close()
	target, err := netns.GetFromName(n.Name)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", n.Name, err)
	}
	defer target.Close()
	if err := netns.Set(target); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", n.Name, err)
	}
	err = f()
	if back := netns.Set(origin); back != nil {
		return errors.Join(err, fmt.Errorf("leave network namespace %s: %w", n.Name, back))
	}
	runtime.UnlockOSThread()
	return err
}

// Command prepares a program that will run inside the namespace.
func (n *Namespace) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", n.Name, name}, args...)...)
}

// IP runs ip(8) inside the namespace.
func (n *Namespace) IP(args ...string) error { return ip(append([]string{"-n", n.Name}, args...)...) }

// Batch runs many ip(8) commands inside the namespace at the cost of one.
func (n *Namespace) Batch(commands ...string) error {
	cmd := exec.Command("ip", "-n", n.Name, "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	return run(cmd)
}

// NFT loads a rule set in nft(8)'s language.
func (n *Namespace) NFT(rules string) error {
	cmd := n.Command(context.Background(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	return run(cmd)
}

// Sysctl sets a value below /proc/sys/net.
func (n *Namespace) Sysctl(name, value string) error {
	return n.Do(func() error {
		// The kernel shows each thread its own namespace's values.
		if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
			return fmt.Errorf("set sysctl net/%s in %s: %w", name, n.Name, err)
		}
		return nil
	})
}

// Link joins two namespaces by a veth pair and sets both ends up, with the
// addresses given in CIDR notation.
func Link(a *Namespace, aDev string, aAddrs []string, b *Namespace, bDev string, bAddrs []string) error {
	if err := a.IP("link", "add", aDev, "type", "veth", "peer", "name", bDev, "netns", b.Name); err != nil {
		return err
	}
	if err := a.Batch(addresses(aDev, aAddrs)...); err != nil {
		return err
	}
	return b.Batch(addresses(bDev, bAddrs)...)
}

// addresses are the commands that give an interface its addresses and set it up.
func addresses(dev string, addrs []string) []string {
	var commands []string
	for _, addr := range addrs {
		c := "addr add " + addr + " dev " + dev
		if strings.Contains(addr, ":") {
			c += " nodad"
		}
		commands = append(commands, c)
	}
	return append(commands, "link set "+dev+" up")
}

func ip(args ...string) error { return run(exec.Command("ip", args...)) }

func run(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}
