package e2e_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"fairlead.dev/fairlead/test/cluster"
)

// outage is for how long there is no API server: longer than the longest wait between two
// tries of a watch, so that a minute would tell nothing more.
const outage = 3 * time.Second

// noAPIServer stops the API server. Meanwhile a Service goes, and the history in which
// that could be read: the watches expire.
func (w *faultWorld) noAPIServer(t *testing.T) {
	w.AddService(t, "goes", "10.200.1.1")
	_, nodePort := w.AddService(t, "stays", "10.200.1.2")
	w.becomesRight(t, time.Now().Add(repairTime))
	before, err := w.Client.CoreV1().Services("default").List(t.Context(), metav1.ListOptions{})
	must(t, err)
	said := w.agent.Output.String()

	w.traffic.during(t, 0, func() {
		w.KillAPIServer(t)
		rules := cluster.NFT(t, &w.node.Host, "list", "ruleset")
		time.Sleep(outage)
		if after := cluster.NFT(t, &w.node.Host, "list", "ruleset"); after != rules {
			t.Errorf("rules changed without an API server:\n%s\nbecame\n%s", rules, after)
		}
		w.forget(t, "/registry/services/specs/default/goes")
		w.forget(t, "/registry/endpointslices/default/goes-1")
		w.StartAPIServer(t)
		w.becomesRight(t, time.Now().Add(repairTime))
	})

	watch, err := w.Client.CoreV1().Services("default").Watch(t.Context(), metav1.ListOptions{ResourceVersion: before.ResourceVersion})
	if err == nil {
		err = apierrors.FromObject((<-watch.ResultChan()).Object)
		watch.Stop()
	}
	if !apierrors.IsResourceExpired(err) && !apierrors.IsGone(err) {
		t.Errorf("a watch from before: %v, want it expired", err)
	}
	if out := cluster.NFT(t, &w.node.Host, "list", "ruleset"); !strings.Contains(out, fmt.Sprint(nodePort)) || strings.Contains(out, "10.200.1.1 ") {
		t.Errorf("not as the API says:\n%s", out)
	}
	news := strings.TrimPrefix(w.agent.Output.String(), said)
	if n := strings.Count(news, "\n"); n > 2*len([]string{"services", "endpointslices", "nodes", "servicecidrs"}) {
		t.Errorf("%d lines, want one for each resource when it goes and one when it is back:\n%s", n, news)
	}
}

// forget deletes a key in etcd.
func (w *faultWorld) forget(t *testing.T, key string) {
	t.Helper()
	w.etcd(t, "kv/deleterange", fmt.Sprintf(`{"key":%q}`, base64.StdEncoding.EncodeToString([]byte(key))), `"deleted":"1"`)
}

// etcd asks etcd over HTTP.
func (w *faultWorld) etcd(t *testing.T, what, question, want string) {
	t.Helper()
	ctx, cancel := timeout()
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.EtcdURL()+"/v3/"+what, strings.NewReader(question))
	must(t, err)
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer func() { _ = resp.Body.Close() }() // nothing was written that could be lost
	var body bytes.Buffer
	_, err = body.ReadFrom(resp.Body)
	must(t, err)
	if !strings.Contains(body.String(), want) {
		t.Fatalf("%s: no %s in %s", what, want, body.String())
	}
}
