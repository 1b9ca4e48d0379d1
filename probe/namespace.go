package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netns"
)

// namespace is a pod's network namespace.
type namespace struct{ handle netns.NsHandle }

func (n namespace) Close() { _ = n.handle.Close() } // it was only looked at

// namespaceOf finds the network namespace that has an address, among those of
// all processes and those that have a name.
func namespaceOf(addr netip.Addr) (namespace, error) {
	seen := make(map[string]bool)
	var denied error
	for _, pattern := range []string{"/proc/[0-9]*/ns/net", "/run/netns/*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			return namespace{}, err
		}
		for _, path := range paths {
			handle, err := netns.GetFromPath(path)
			if errors.Is(err, os.ErrPermission) {
				denied = err
			}
			if err != nil {
				continue // the process is gone
			}
			n := namespace{handle}
			if id := handle.UniqueId(); !seen[id] {
				seen[id] = true
				if n.has(addr) {
					return n, nil
				}
			}
			n.Close()
		}
	}
	if denied != nil {
		return namespace{}, fmt.Errorf("find the pod with %s: %w: it takes root on its node", addr, denied)
	}
	return namespace{}, fmt.Errorf("find the pod with %s: no network namespace of this node has the address", addr)
}

func (n namespace) has(addr netip.Addr) bool {
	found := false
	_ = n.do(func() error { // one that cannot be entered has not the address
		all, err := net.InterfaceAddrs()
		for _, a := range all {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr {
				found = true
			}
		}
		return err
	})
	return found
}

// do runs f on a thread inside of the namespace; sockets that f opens stay there.
func (n namespace) do(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := netns.Set(n.handle); err != nil {
			done <- fmt.Errorf("enter a network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
