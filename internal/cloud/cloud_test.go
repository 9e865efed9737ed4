package cloud_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/rest"
	cloudprovider "k8s.io/cloud-provider"
	"k8s.io/cloud-provider/fake"

	"fairlead.dev/fairlead/internal/cloud"
)

func TestRegistry(t *testing.T) {
	built := &fake.Cloud{}
	boom := errors.New("boom")
	r := cloud.Registry{
		"mine":   func() (cloudprovider.Interface, error) { return built, nil },
		"broken": func() (cloudprovider.Interface, error) { return nil, boom },
	}
	if got, err := r.Provider("mine"); got != built || err != nil {
		t.Errorf("mine: got %v, %v", got, err)
	}
	if _, err := r.Provider("broken"); !errors.Is(err, boom) {
		t.Errorf("broken: got %v, want %v", err, boom)
	}
	want := `loadBalancer.provider: "other" is no registered cloud provider; known are: broken, mine`
	if _, err := r.Provider("other"); fmt.Sprint(err) != want {
		t.Errorf("other: got %v, want %s", err, want)
	}
}

type untagged struct{ fake.Cloud }

func (*untagged) HasClusterID() bool { return false }

func TestLoadBalancer(t *testing.T) {
	for name, tc := range map[string]struct {
		provider cloudprovider.Interface
		want     string
	}{
		"one that has all":       {provider: &fake.Cloud{}, want: "<nil>"},
		"no load balancers":      {provider: &fake.Cloud{DisableLoadBalancers: true}, want: `the cloud provider "fake" has no load balancers`},
		"no cluster ID, needing": {provider: &untagged{}, want: `the cloud provider "fake" needs a cluster ID and found none`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := cloud.Start(t.Context(), tc.provider, &rest.Config{}, nil)
			if fmt.Sprint(err) != tc.want {
				t.Errorf("got %v, want %s", err, tc.want)
			}
		})
	}
}

// lively is a provider with everything there is to start.
type lively struct {
	fake.Cloud
	steps []string
	ready bool
	stop  <-chan struct{}
	fail  error
}

func (l *lively) Initialize(clients cloudprovider.ControllerClientBuilder, stop <-chan struct{}) {
	cfg := clients.ConfigOrDie("mine")
	l.steps, l.stop = append(l.steps, "Initialize "+cfg.Host), stop
	clients.ClientOrDie("mine")
	l.ready = true
}

func (l *lively) LoadBalancer() (cloudprovider.LoadBalancer, bool) { return l, l.ready }

func (l *lively) SetInformers(informers.SharedInformerFactory) {
	l.steps = append(l.steps, "SetInformers")
}

func (l *lively) Look(_ context.Context, again func(types.NamespacedName)) error {
	l.steps = append(l.steps, "Look")
	again(types.NamespacedName{Name: "web"})
	return l.fail
}

func TestStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	l := &lively{fail: errors.New("no listing")}
	var again []string
	_, err := cloud.Start(ctx, l, &rest.Config{Host: "https://192.0.2.1"}, func(n types.NamespacedName) { again = append(again, n.Name) })
	if !errors.Is(err, l.fail) {
		t.Errorf("got %v, want %v", err, l.fail)
	}
	if want := []string{"Initialize https://192.0.2.1", "SetInformers", "Look"}; !slices.Equal(l.steps, want) {
		t.Errorf("did %v, want %v", l.steps, want)
	}
	if !slices.Equal(again, []string{"web"}) {
		t.Errorf("looks again at %v", again)
	}
	cancel()
	<-l.stop
}
