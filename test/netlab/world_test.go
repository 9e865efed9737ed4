package netlab

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestEnterErrorSaysWhatToDo(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		uid  int
		want []string
		not  string
	}{
		"user namespaces are off for users": {
			err: unix.EPERM, uid: 1000,
			want: []string{"kernel.unprivileged_userns_clone=1", "user.max_user_namespaces", "or run as root"},
		},
		"the limit of user namespaces is zero": {
			err: unix.ENOSPC, uid: 1000,
			want: []string{"user.max_user_namespaces"},
		},
		"a wrapped error counts, too": {
			err: &os.PathError{Op: "fork/exec", Path: "/proc/self/exe", Err: unix.EPERM}, uid: 1000,
			want: []string{"apparmor_restrict_unprivileged_userns=0"},
		},
		"root without capabilities": {
			err: unix.EPERM, uid: 0,
			want: []string{"CAP_SYS_ADMIN"}, not: "run as root",
		},
		"another error is no matter of settings": {
			err: unix.ENOMEM, uid: 1000,
			want: []string{"entering a network world"}, not: "sysctl",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := enterError(c.err, c.uid)
			if !errors.Is(got, c.err) {
				t.Errorf("%v does not wrap %v", got, c.err)
			}
			for _, want := range c.want {
				if !strings.Contains(got.Error(), want) {
					t.Errorf("%q lacks %q", got, want)
				}
			}
			if c.not != "" && strings.Contains(got.Error(), c.not) {
				t.Errorf("%q has %q", got, c.not)
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	for script, want := range map[string]int{"exit 0": 0, "exit 7": 7, "kill -TERM $$": 143, "kill -KILL $$": 137} {
		if got := exitCode(exec.Command("sh", "-c", script).Run()); got != want {
			t.Errorf("%s: got %d, want %d", script, got, want)
		}
	}
}

// again returns a command that runs this test binary anew, from outside of any
// world, with the tests that match pattern.
func again(t *testing.T, pattern string, env ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "-test.v", "-test.count=1", "-test.run="+pattern)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=/tmp"}, env...)
	cmd.Dir = "/"
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	return cmd, &output
}

// TestRunsForOthers runs other tests as users that may do less than this one.
func TestRunsForOthers(t *testing.T) {
	if os.Getuid() != 0 || os.Getenv("NETLAB_AGAIN") != "" {
		t.Skip("needs a root that is not itself started by this test")
	}
	const nobody = 65534
	for name, c := range map[string]struct {
		uid uint32
		env string
	}{
		"an ordinary user":             {uid: nobody},
		"root without user namespaces": {env: userNSVar + "=off"},
	} {
		t.Run(name, func(t *testing.T) {
			pattern := "^(TestEveryHostReachesTheOthers|TestServiceRules|TestCloseLeavesNothing|TestWorldIsPrivate)$"
			cmd, output := again(t, pattern, "NETLAB_AGAIN=1", c.env)
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
			if c.uid != 0 {
				cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.uid, Gid: c.uid}
			}
			err := cmd.Run()
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
				t.Skipf("this world has one user only: %v", err)
			}
			if err != nil || strings.Count(output.String(), "--- PASS") != 4 {
				t.Errorf("%v, want four tests to pass\n%s", err, output)
			}
		})
	}
}

// TestWorldIsPrivate checks that the machine's namespaces cannot be reached by
// accident: the network is empty and /run/netns is this world's alone.
func TestWorldIsPrivate(t *testing.T) {
	if os.Getenv(worldVar) != worldReady {
		t.Fatal("not in a world")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), "shared:") {
		t.Errorf("a mount propagates to the machine:\n%s", mounts)
	}
	links, err := exec.Command("ip", "-o", "link").Output()
	if err != nil {
		t.Fatal(err)
	}
	// Some kernels give every namespace fallback tunnels, which are down.
	for line := range strings.Lines(string(links)) {
		if !strings.Contains(line, " lo:") && strings.Contains(line, ",UP") {
			t.Errorf("the world has the link %s", line)
		}
	}
	if names, err := os.ReadDir(netnsDir); err != nil || len(names) != 0 {
		t.Errorf("%s holds %v (%v), want nothing", netnsDir, names, err)
	}
}

// TestHelperSleep is the world that startHelper starts.
func TestHelperSleep(t *testing.T) {
	if os.Getenv("NETLAB_AGAIN") != "sleep" {
		return // it is run by startHelper only
	}
	lab, err := New()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lab.Close() }() // the kernel takes what is left
	n, err := lab.AddNode("node1")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", "echo up $PPID; exec sleep 600")
	cmd.Stdout = os.Stdout
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // until a signal ends this process
}

// startHelper starts TestHelperSleep in a world of its own and waits until its
// lab is up. It returns the process that was started outside of that world, its
// output, and the id of the process inside.
func startHelper(t *testing.T) (*exec.Cmd, io.Reader, int) {
	t.Helper()
	cmd, _ := again(t, "^TestHelperSleep$", "NETLAB_AGAIN=sleep")
	cmd.Stdout = nil
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	output := bufio.NewReader(pipe)
	for {
		line, err := output.ReadString('\n')
		if err != nil {
			t.Fatalf("%v after %q", err, line)
		}
		if pid, found := strings.CutPrefix(line, "up "); found {
			id, err := strconv.Atoi(strings.TrimSpace(pid))
			if err != nil {
				t.Fatal(err)
			}
			return cmd, output, id
		}
	}
}

// TestVisitorsFindTheNamespaces joins a world the way the package's comment says.
func TestVisitorsFindTheNamespaces(t *testing.T) {
	cmd, _, pid := startHelper(t)
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	join := fmt.Sprintf("nsenter -t %d -U --preserve-credentials -n -m ", pid)
	mine, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	if theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid)); err != nil {
		t.Fatal(err)
	} else if mine == theirs { // user namespaces are off, and joining one's own is an error
		join = strings.Replace(join, "-U --preserve-credentials ", "", 1)
	}
	for _, command := range []string{
		"nsenter --net=/run/netns/node1 ip -o -4 addr show eth0",
		"ip netns exec node1 ip -o -4 addr show eth0",
	} {
		out, err := exec.Command("sh", "-c", join+command).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "172.18.0.11/24") {
			t.Errorf("%s%s: %v, want node1's address in\n%s", join, command, err, out)
		}
	}
}

// TestWorldEndsWithItsStarter signals the process that was started outside;
// the one inside the world and what runs in the lab hold the pipe open until
// they are gone as well.
func TestWorldEndsWithItsStarter(t *testing.T) {
	for _, signal := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGKILL} {
		cmd, output, _ := startHelper(t)
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, output); err != nil { // ends when nobody writes any more
			t.Fatal(err)
		}
		_ = cmd.Wait() // the code is looked at below
		got := cmd.ProcessState.ExitCode()
		if want := 128 + int(signal); got != want && signal != unix.SIGKILL {
			t.Errorf("%v: exit code %d, want %d", signal, got, want)
		}
	}
}
