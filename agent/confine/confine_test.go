package confine

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestOnlyWhatIsKeptIsLeft(t *testing.T) {
	all := unix.CapUserData{Permitted: 1<<32 - 1, Effective: 1<<32 - 1, Inheritable: 1<<32 - 1}
	for name, c := range map[string]struct {
		has  [2]unix.CapUserData
		keep []uintptr
		want [2]unix.CapUserData
	}{
		"one of all":         {[2]unix.CapUserData{all, all}, []uintptr{unix.CAP_NET_ADMIN}, [2]unix.CapUserData{{Permitted: 1 << 12, Effective: 1 << 12}}},
		"one of the second":  {[2]unix.CapUserData{all, all}, []uintptr{unix.CAP_SYSLOG}, [2]unix.CapUserData{{}, {Permitted: 1 << 2, Effective: 1 << 2}}},
		"nothing it had not": {[2]unix.CapUserData{{Permitted: 1, Effective: 1}}, []uintptr{unix.CAP_NET_ADMIN}, [2]unix.CapUserData{}},
		"permitted becomes effective": {
			[2]unix.CapUserData{{Permitted: 1 << 12}},
			[]uintptr{unix.CAP_NET_ADMIN},
			[2]unix.CapUserData{{Permitted: 1 << 12, Effective: 1 << 12}},
		},
	} {
		if got := confined(c.has, c.keep); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}
