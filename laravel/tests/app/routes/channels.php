<?php

use Illuminate\Support\Facades\Broadcast;

Broadcast::channel('orders.{id}', fn ($user, $id) => (int) $user->id === (int) $id);
Broadcast::channel('admin', fn ($user) => $user->guard === 'admin', ['guards' => ['admin']]);
Broadcast::channel('room.{id}', fn ($user, $id) => ['name' => $user->name]);
Broadcast::channel('lobby', fn ($user) => true);
Broadcast::channel('App.User.{id}', fn ($user, $id) => (string) $user->id === $id);
