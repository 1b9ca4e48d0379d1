package netlab_test

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/flowaudit/flowaudit/test/netlab"
)

func TestPodsReachEachOther(t *testing.T) {
	a := netlab.NodeT(t, "a", 1, 2)
	b := netlab.NodeT(t, "b", 2, 1)
	if err := netlab.Join(a, b); err != nil {
		t.Fatal(err)
	}
	for name, pair := range map[string][2]*netlab.Pod{
		"on one node":   {a.Pods[0], a.Pods[1]},
		"between nodes": {a.Pods[0], b.Pods[0]},
	} {
		for _, server := range []string{pair[1].IPv4.String(), pair[1].IPv6.String()} {
			t.Run(fmt.Sprintf("%s to %s", name, server), func(t *testing.T) { echo(t, pair[0], pair[1], server) })
		}
	}
}

func echo(t *testing.T, client, server *netlab.Pod, addr string) {
	var listener net.Listener
	if err := server.Do(func() (err error) {
		listener, err = net.Listen("tcp", net.JoinHostPort(addr, "80"))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		if c, err := listener.Accept(); err == nil {
			fmt.Fprint(c, "hello")
			c.Close()
		}
	}()
	if err := client.Do(func() error {
		c, err := net.Dial("tcp", net.JoinHostPort(addr, "80"))
		if err != nil {
			return err
		}
		defer c.Close()
		text, err := io.ReadAll(c)
		if err == nil && string(text) != "hello" {
			err = fmt.Errorf("read %q", text)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
}
