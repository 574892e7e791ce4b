package main

import "testing"

func TestDevices(t *testing.T) {
	made, err := devices("FAKE-A=2", 3)
	if err != nil || len(made) != 2 {
		t.Fatalf("%v, %v", made, err)
	}
	if made[1].Name != "gpu-4" || *made[1].Attributes["productName"].StringValue != "FAKE-A" {
		t.Errorf("%+v", made[1])
	}
	for _, wish := range []string{"", "FAKE-A", "FAKE-A=0", "=1", "FAKE-A=x"} {
		if _, err := devices(wish, 0); err == nil {
			t.Errorf("%q was taken", wish)
		}
	}
}
