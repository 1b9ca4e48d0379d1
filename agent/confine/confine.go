// Package confine gives up what the process could do beyond its duty.
package confine

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrBuild says that the program was built with cgo, which starts threads that
// cannot be reached: nothing was given up.
var ErrBuild = errors.New("the program was built with cgo")

// To keeps of the process's capabilities those of the list, as far as it has
// them, and forbids it and what it may start to get new ones (no_new_privs).
// It holds for all threads. There is no way back.
func To(keep ...uintptr) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	may := data[unix.CAP_SETPCAP/32].Effective&(1<<(unix.CAP_SETPCAP%32)) != 0
	kept := confined(data, keep)
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0); errno == syscall.ENOTSUP {
		return fmt.Errorf("give up capabilities: %w: build it with CGO_ENABLED=0", ErrBuild)
	} else if errno != 0 {
		return fmt.Errorf("give up ambient capabilities: %w", errno)
	}
	if may { // else the set stays, which without new privileges gives nothing
		if err := bound(keep); err != nil {
			return err
		}
	}
	if _, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); errno != 0 {
		return fmt.Errorf("forbid new privileges: %w", errno)
	}
	// #nosec G103 -- the kernel reads both during the call
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&kept[0])), 0); errno != 0 {
		return fmt.Errorf("give up capabilities: %w", errno)
	}
	return nil
}

// confined is what is left of capabilities. Nothing is left to be inherited.
func confined(has [2]unix.CapUserData, keep []uintptr) (left [2]unix.CapUserData) {
	for _, c := range keep {
		bit := uint32(1) << (c % 32)
		left[c/32].Permitted |= has[c/32].Permitted & bit
		left[c/32].Effective |= has[c/32].Permitted & bit
	}
	return left
}

// bound takes everything else out of what a program that is started could get.
func bound(keep []uintptr) error {
	kept := make(map[uintptr]bool)
	for _, c := range keep {
		kept[c] = true
	}
	const most = 64 // bits of a set
	for c := range uintptr(most) {
		if kept[c] {
			continue
		}
		switch _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); errno {
		case 0:
		case syscall.EINVAL: // the kernel knows no more of them
			return nil
		default:
			return fmt.Errorf("bound capabilities: %w", errno)
		}
	}
	return nil
}
