<?php

use Illuminate\Support\Facades\Broadcast;

Broadcast::channel('customers.{id}', fn ($user, $id) => (int) $user->id === (int) $id);
Broadcast::channel('App.Models.User.{id}', fn ($user, $id) => (int) $user->id === (int) $id);
Broadcast::channel('ledger', fn ($user) => true);
Broadcast::channel('room', fn ($user) => ['id' => $user->id, 'name' => $user->name]);
