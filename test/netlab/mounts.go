package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// netnsDir is where ip-netns(8) looks for network namespaces by name.
const netnsDir = "/run/netns"

// privateRun gives the mount namespace a /run of its own, on which netnsDir
// can be made by anyone. What was in /run stays reachable, but for the
// machine's named namespaces and the lock of iptables, which is root's.
// It must run in a new mount namespace.
func privateRun() error {
	// Without this the mounts would propagate to the machine's namespace
	// where systemd makes / shared (mount_namespaces(7)).
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	old, err := unix.Open("/run", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening /run: %w", err)
	}
	defer func() { _ = unix.Close(old) }() // nothing was written that could be lost
	was := fmt.Sprintf("/proc/self/fd/%d", old)
	entries, err := os.ReadDir(was)
	if err != nil {
		return fmt.Errorf("reading /run: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mounting /run: %w", err)
	}
	for _, e := range entries {
		if name := e.Name(); name != "netns" && name != "xtables.lock" {
			if err := keep(filepath.Join(was, name), filepath.Join("/run", name), e.Type()); err != nil {
				return fmt.Errorf("keeping /run/%s: %w", name, err)
			}
		}
	}
	if err := os.Mkdir(netnsDir, 0o755); err != nil {
		return fmt.Errorf("making the directory of namespaces: %w", err)
	}
	return nil
}

// keep makes what is at from appear at to. An entry that this user may not
// look at, or that has just gone, is left out.
func keep(from, to string, kind fs.FileMode) error {
	var err error
	switch {
	case kind&fs.ModeSymlink != 0:
		var target string
		if target, err = os.Readlink(from); err == nil {
			err = os.Symlink(target, to)
		}
		return ignoreHidden(err)
	case kind.IsDir():
		err = os.Mkdir(to, 0o755)
	default:
		err = os.WriteFile(to, nil, 0o644)
	}
	if err != nil {
		return err
	}
	return ignoreHidden(unix.Mount(from, to, "", unix.MS_BIND|unix.MS_REC, ""))
}

// ignoreHidden drops the errors of an entry that is not there for this user.
func ignoreHidden(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}
